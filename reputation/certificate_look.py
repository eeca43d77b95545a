"""The certificate a listener of ours shows: SMTP with STARTTLS, or TLS from the first byte (465)."""

from __future__ import annotations

import smtplib
import ssl

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from reputation.policy.watch import Certificate

IMPLICIT = 465
"""The port of submission with TLS from the first byte (RFC 8314 3.3)."""


def look(ip: str, port: int, timeout: float) -> Certificate | None:
    """What is shown at an address; None where nobody listens, offers TLS, or ends the handshake. ``timeout``
    in real seconds for each step. The certificate is read, not judged: nothing is believed because of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        if port == IMPLICIT:
            with smtplib.SMTP_SSL(ip, port, timeout=timeout, context=context) as talk:
                return _read(talk, ip, port)
        with smtplib.SMTP(ip, port, timeout=timeout) as talk:
            talk.ehlo()
            if not talk.has_extn("starttls"):
                return None
            talk.starttls(context=context)
            return _read(talk, ip, port)
    except (OSError, smtplib.SMTPException, ValueError):
        return (
            None  # a listener that is not there, or not a mail server, has no certificate to judge
        )


def _read(talk: smtplib.SMTP, ip: str, port: int) -> Certificate | None:
    der = talk.sock.getpeercert(True) if isinstance(talk.sock, ssl.SSLSocket) else None
    if der is None:
        return None
    found = x509.load_der_x509_certificate(der)
    return Certificate(
        f"{ip}:{port}",
        _names(found),
        found.not_valid_before_utc.timestamp(),
        found.not_valid_after_utc.timestamp(),
    )


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The alternative names; the common name where there are none (RFC 6125 6.4.4)."""
    try:
        extension = certificate.extensions.get_extension_for_oid(
            ExtensionOID.SUBJECT_ALTERNATIVE_NAME
        ).value
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return tuple(str(attribute.value) for attribute in common)
    assert isinstance(extension, x509.SubjectAlternativeName)
    return tuple(extension.get_values_for_type(x509.DNSName))
