"""API keys: their text form, what is derived from the secret, who a caller is.

``mw_<id>.<secret>``: the id is public (logs, revocation), the secret 256 random bits. Stored are two
hashes of it: one proves the caller at a door, the other is the key of published messages' HMAC; neither
gives back the secret nor the other hash.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

PREFIX = "mw_"
SCOPES = frozenset({"send", "read", "admin", "webhook", "route"})


class BadToken(ValueError):
    """The text is no API key; the message never repeats it."""


class ApiKey(msgspec.Struct, frozen=True):
    """A caller the door knows."""

    id: str
    tenant: str
    scopes: frozenset[str]
    domains: tuple[str, ...]  # sender domains, "*" for all, "*.acme.test" for subdomains
    mac_key: bytes = b""

    def __repr__(self) -> str:
        return f"ApiKey({self.id}, tenant={self.tenant})"

    def may_send_as(self, domain: str) -> bool:
        """Whether this caller may use a sender domain (lower-case A-label)."""
        return any(
            allowed in ("*", domain) or (allowed.startswith("*.") and domain.endswith(allowed[1:]))
            for allowed in self.domains
        )


def split_token(token: str) -> tuple[str, str]:
    """Id and secret of an API key. Raises :class:`BadToken`."""
    key_id, dot, secret = token.strip().removeprefix(PREFIX).partition(".")
    if not (token.strip().startswith(PREFIX) and dot and secret and token.isascii()):
        raise BadToken("an API key looks like mw_<id>.<secret>")
    if not (key_id.isalnum() and len(key_id) <= 32 and len(secret) <= 128):
        raise BadToken("an API key looks like mw_<id>.<secret>")
    return key_id, secret


def auth_hash(secret: str) -> bytes:
    """What the store keeps to recognise the secret: it is random, so one hash is enough."""
    return hashlib.sha256(b"auth:" + secret.encode()).digest()


def mac_key(secret: str) -> bytes:
    """Key of the HMAC over published messages."""
    return hashlib.sha256(b"mac:" + secret.encode()).digest()


def sign(key: bytes, key_id: str, at: float, message_id: str, body: str) -> str:
    """HMAC-SHA256 in hex over everything a published message says."""
    head = f"{key_id}\n{at!r}\n{message_id}\n".encode()
    return hmac.new(key, head + body.encode("utf-8"), hashlib.sha256).hexdigest()


def verify(key: bytes, key_id: str, at: float, message_id: str, body: str, mac: str) -> bool:
    """Whether ``mac`` is :func:`sign`'s, in constant time."""
    expected = sign(key, key_id, at, message_id, body)
    return hmac.compare_digest(expected.encode(), mac.encode("utf-8", "surrogatepass"))
