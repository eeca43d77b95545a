"""DKIM signatures (RFC 6376, RFC 8463), relaxed/relaxed, RSA-2048 and Ed25519 side by side.

One canonicalisation and one body hash serve all signers of a mail. Headers are oversigned: each
protected name stands once more in ``h=`` than in the mail, so a second From or Subject added on the
way breaks the signature. Signatures are deterministic: every attempt of a job sends the same bytes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mailweir.contracts.policy import SendingDomain
from mailweir.plumbing.secrets import Secrets

# Signed where present, and once more (RFC 6376 5.4.1's list plus what receivers act on).
SIGNED = (
    b"from", b"to", b"cc", b"subject", b"date", b"message-id", b"reply-to", b"sender",
    b"in-reply-to", b"references", b"mime-version", b"content-type",
    b"content-transfer-encoding", b"list-unsubscribe", b"list-unsubscribe-post", b"list-id",
    b"feedback-id",
)  # fmt: skip
_WANTED = frozenset(SIGNED)
# runs alone: less than half the time of replacing pairs until none is left
_BLANKS = re.compile(rb"  +")
MIN_RSA_BITS = 1024  # RFC 8301: receivers refuse less; 2048 is what to use
Key = RSAPrivateKey | Ed25519PrivateKey


class BadKey(Exception):
    """The secret is no usable private key. The text names the reference, never the key."""


def load_key(pem: str, reference: str) -> Key:
    """Parse a PEM private key, RSA or Ed25519. Raises :class:`BadKey`."""
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadKey(f"DKIM key {reference}: not an unencrypted PEM private key") from None
    if isinstance(key, RSAPrivateKey):
        if key.key_size < MIN_RSA_BITS:
            raise BadKey(
                f"DKIM key {reference}: RSA with {key.key_size} bits is refused (RFC 8301)"
            )
        return key
    if isinstance(key, Ed25519PrivateKey):
        return key
    raise BadKey(f"DKIM key {reference}: neither RSA nor Ed25519")


def relaxed_body(body: bytes) -> bytes:
    """RFC 6376 3.4.4 for a body that is empty or ends with CRLF, and has no other line ends."""
    if b"\t" in body:
        body = body.replace(b"\t", b" ")
    body = _BLANKS.sub(b" ", body)
    if b" \r\n" in body:
        body = body.replace(b" \r\n", b"\r\n")
    if body.endswith(b"\r\n\r\n") or body == b"\r\n":
        body = body.rstrip(b"\r\n")
        return body + b"\r\n" if body else b""
    return body


def relaxed_value(value: bytes) -> bytes:
    """RFC 6376 3.4.2 for a field's value: unfolded, runs of blanks as one, none around it."""
    value = value.replace(b"\r\n", b"").replace(b"\t", b" ")
    while b"  " in value:
        value = value.replace(b"  ", b" ")
    return value.strip(b" ")


def split(data: bytes) -> tuple[bytes, bytes]:
    """Header block with its last CRLF, and body."""
    if data.startswith(b"\r\n"):
        return b"", data[2:]
    head, found, body = data.partition(b"\r\n\r\n")
    return (head + b"\r\n", body) if found else (data, b"")


def _fields(head: bytes) -> dict[bytes, list[bytes]]:
    """Canonical lines of the fields to sign, by name, top to bottom."""
    found: dict[bytes, list[bytes]] = {}
    name = b""
    value = b""
    for line in head.split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            value += line
            continue
        if name in _WANTED:
            found.setdefault(name, []).append(name + b":" + relaxed_value(value) + b"\r\n")
        raw, _, value = line.partition(b":")
        name = raw.strip(b" \t").lower()
    return found


class Prepared:
    """The parts of a mail all its signatures share."""

    __slots__ = ("body_hash", "headers", "names")

    def __init__(self, data: bytes) -> None:
        head, body = split(data)
        fields = _fields(head)
        names: list[bytes] = []
        lines: list[bytes] = []
        for name in SIGNED:
            present = fields.get(name, ())
            lines += reversed(present)  # RFC 6376 5.4.2: the last one first
            names += [name] * (len(present) + 1)
        self.headers = b"".join(lines)
        self.names = _folded_names(names)
        self.body_hash = base64.b64encode(sha256(relaxed_body(body)).digest())


def _folded_names(names: Iterable[bytes]) -> bytes:
    """``h=`` as lines of at most 72 characters, broken after a colon."""
    lines: list[bytes] = []
    line = b" h="
    for name in names:
        if len(line) + len(name) > 70:
            lines.append(line)
            line = b" "
        line += name + b":"
    lines.append(line[:-1])
    return b"\r\n".join(lines)


class Signer:
    """One key of one domain."""

    __slots__ = ("_algorithm", "_key", "domain", "selector")

    def __init__(self, domain: str, selector: str, key: Key) -> None:
        self.domain = domain
        self.selector = selector
        self._key = key
        self._algorithm = b"rsa-sha256" if isinstance(key, RSAPrivateKey) else b"ed25519-sha256"

    def __repr__(self) -> str:
        return f"Signer({self.selector}._domainkey.{self.domain}, {self._algorithm.decode()})"

    def sign(self, data: bytes, at: int) -> bytes:
        """The ``DKIM-Signature`` field (with CRLF) for a whole message; ``at`` is ``t=``, Unix
        seconds."""
        return self.sign_prepared(Prepared(data), at)

    def sign_prepared(self, prepared: Prepared, at: int) -> bytes:
        """The same, where several signers share the work."""
        value = (
            b" v=1; a=%b; c=relaxed/relaxed;\r\n d=%b; s=%b; t=%d;\r\n%b;\r\n bh=%b;\r\n b="
        ) % (
            self._algorithm,
            self.domain.encode("ascii"),
            self.selector.encode("ascii"),
            at,
            prepared.names,
            prepared.body_hash,
        )
        signed = prepared.headers + b"dkim-signature:" + relaxed_value(value)
        if isinstance(self._key, RSAPrivateKey):
            raw = self._key.sign(signed, PKCS1v15(), SHA256())
        else:
            raw = self._key.sign(sha256(signed).digest())  # RFC 8463 3
        text = base64.b64encode(raw)
        chunks = [text[i : i + 70] for i in range(0, len(text), 70)]
        return b"DKIM-Signature:" + value + b"\r\n ".join(chunks) + b"\r\n"


def sign_all(data: bytes, signers: Sequence[Signer], at: int) -> bytes:
    """``data`` with one signature of each signer in front."""
    if not signers:
        return data
    prepared = Prepared(data)
    return b"".join([*(signer.sign_prepared(prepared, at) for signer in signers), data])


class Keyring:
    """Signers of sending domains; a key is parsed once and again only when its secret changed.

    ``for_domain`` may block on a secrets manager: call it from a thread, once a chunk.
    """

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._keys: dict[str, tuple[bytes, Key]] = {}

    def for_domain(self, domain: SendingDomain) -> tuple[Signer, ...]:
        """One signer per key of the domain. Raises :class:`BadKey` or ``SecretUnavailable``."""
        return tuple(
            Signer(key.domain or domain.name, key.selector, self._key(key.secret))
            for key in domain.dkim
        )

    def _key(self, reference: str) -> Key:
        pem = self._secrets.get(reference)
        mark = sha256(pem.encode()).digest()
        known = self._keys.get(reference)
        if known is None or known[0] != mark:
            known = self._keys[reference] = (mark, load_key(pem, reference))
        return known[1]
