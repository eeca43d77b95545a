"""DANE for SMTP (RFC 7672): does this TLS session's certificate match the host's TLSA records?

Usage 3 (DANE-EE) is matched against the server's own certificate: neither name nor dates count.
Usage 2 (DANE-TA) against the issuers the server sent: one must match, and the server's certificate
must chain up to it in time and name the host. ``cryptography`` builds that chain by the rules of the
web PKI, so an issuer with a weak key or without a CA constraint fails where OpenSSL would accept it.
The chain as sent is public in Python 3.13 and private before (``_sslobj``); a test guards that.
Usages 0 and 1 are unusable for SMTP (3.1.3). A server that leaves its trust anchor out of the chain
(RFC 7672 forbids it) and publishes a digest of it cannot be verified by anybody.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import verification

from workers.delivery.types import Tlsa

DANE_TA, DANE_EE = 2, 3
_DIGESTS = {1: hashlib.sha256, 2: hashlib.sha512}
_SIZES = {1: 32, 2: 64}


def usable(record: Tlsa) -> bool:
    """Whether RFC 7672 lets SMTP use this record, and it is whole."""
    return (
        record.usage in (DANE_TA, DANE_EE)
        and record.selector in (0, 1)
        and record.matching in (0, 1, 2)
        and len(record.data) == _SIZES.get(record.matching, len(record.data))
        and bool(record.data)
    )


def check(session: ssl.SSLObject | ssl.SSLSocket, records: Sequence[Tlsa], host: str) -> None:
    """Raises :class:`ssl.SSLCertVerificationError` unless a record vouches for the session's peer."""
    chain = sent_chain(session)
    if chain and (matches_leaf(chain[0], records) or matches_anchor(chain, records, host)):
        return
    error = ssl.SSLCertVerificationError("no TLSA record matches")
    error.verify_message = "no TLSA record of the host matches its certificate"
    raise error


def matches_leaf(leaf: bytes, records: Sequence[Tlsa]) -> bool:
    """A usage 3 record matches the server's certificate (DER)."""
    return any(r.usage == DANE_EE and _matches(leaf, r) for r in records)


def matches_anchor(chain: Sequence[bytes], records: Sequence[Tlsa], host: str) -> bool:
    """A usage 2 record matches a certificate of the chain (DER, server's first) that vouches for the
    server's."""
    anchors = [
        der
        for der in chain[1:]
        if any(r.usage == DANE_TA and _matches(der, r) for r in records)
    ]  # fmt: skip
    # a whole certificate in the record is an anchor even where the server did not send it
    anchors += [r.data for r in records if (r.usage, r.selector, r.matching) == (DANE_TA, 0, 0)]
    return any(_vouches(anchor, chain, host) for anchor in anchors)


def _vouches(anchor: bytes, chain: Sequence[bytes], host: str) -> bool:
    try:
        leaf, *others = (x509.load_der_x509_certificate(der) for der in chain)
        store = verification.Store([x509.load_der_x509_certificate(anchor)])
        verifier = verification.PolicyBuilder().store(store)
        verifier.build_server_verifier(x509.DNSName(host)).verify(leaf, others)
    except (ValueError, verification.VerificationError):
        return False
    return True


def _matches(der: bytes, record: Tlsa) -> bool:
    content = der if record.selector == 0 else _public_key(der)
    if content is None:
        return False
    digest = _DIGESTS.get(record.matching)
    return record.data == (digest(content).digest() if digest else content)


def _public_key(der: bytes) -> bytes | None:
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except ValueError:
        return None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sent_chain(session: Any) -> list[bytes]:
    """The certificates the peer sent, DER, its own first."""
    if hasattr(session, "get_unverified_chain"):  # Python 3.13
        return [bytes(der) for der in session.get_unverified_chain() or ()]
    # 3.10 to 3.12 keep the method, and the certificates' type, private
    raw = session._sslobj.get_unverified_chain() or ()
    return [bytes(certificate.public_bytes(2)) for certificate in raw]  # 2: DER
