"""What a suppression is: its key, scope, reason and end; and how it looks in Redis. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from mailweir.mail.address import InvalidAddress, canonical, parse_domain


class Scope(StrEnum):
    """Where a suppression holds."""

    GLOBAL = "global"  # every tenant and bucket: the address does not exist
    TENANT = "tenant"  # every bucket of a tenant: it complained
    BUCKET = "bucket"  # one bucket (of one tenant, or of all): it unsubscribed


class Reason(StrEnum):
    """Why, most serious first: of several entries the first one is told."""

    COMPLAINT = "complaint"
    HARD_BOUNCE = "hard_bounce"
    INVALID_DOMAIN = "invalid_domain"
    UNSUBSCRIBE = "unsubscribe"
    MANUAL = "manual"
    RECIPIENT_REFUSED = "recipient_refused"
    SOFT_BOUNCE = "soft_bounce"
    IMPORTED = "imported"


_RANK = {str(reason): rank for rank, reason in enumerate(Reason)}


class BadEntry(ValueError):
    """An entry cannot be kept; the text says which field is wrong, without an address."""


class Entry(msgspec.Struct, frozen=True):
    """One suppression. Times are policy seconds; ``expires_at`` None: for ever."""

    key: str
    scope: str
    reason: str
    created_at: float
    tenant: str = ""
    bucket: str = ""
    expires_at: float | None = None
    pending: bool = False  # held back by the mass-bounce guard: does not suppress yet
    source_event: str | None = None  # id of the attempt or event that brought it


def key_of(subject: str) -> str:
    """The one key of what is suppressed: an address, ``@domain``, or ``sender>recipient``.

    Raises :class:`BadEntry`.
    """
    text = subject.strip()
    try:
        if ">" in text:
            sender, _, recipient = text.partition(">")
            return f"{canonical(sender.strip())}>{canonical(recipient.strip())}"
        if text.startswith("@"):
            return "@" + parse_domain(text[1:])
        return canonical(text)
    except InvalidAddress as error:
        raise BadEntry(f"address: {error.why}") from None


def checked(entry: Entry) -> Entry:
    """The entry with its fields in order. Raises :class:`BadEntry` naming the field."""
    if entry.scope not in set(Scope):
        raise BadEntry(f"scope: {entry.scope!r} is none of {', '.join(Scope)}")
    if entry.scope == Scope.TENANT and not entry.tenant:
        raise BadEntry("tenant: a suppression of scope tenant names its tenant")
    if entry.scope == Scope.BUCKET and entry.bucket not in ("transactional", "marketing", "bulk"):
        raise BadEntry("bucket: give transactional, marketing or bulk for scope bucket")
    if entry.reason not in _RANK:
        raise BadEntry(f"reason: {entry.reason!r} is none of {', '.join(Reason)}")
    if entry.scope == Scope.GLOBAL and (entry.tenant or entry.bucket):
        raise BadEntry("scope: a global suppression has neither tenant nor bucket")
    if entry.scope == Scope.TENANT and entry.bucket:
        raise BadEntry("bucket: only scope bucket has one")
    if len(entry.tenant) > 64:
        raise BadEntry("tenant: longer than 64 characters")
    return entry


class Held(NamedTuple):
    """An entry as the projection keeps it, beside its hashed key."""

    scope: str
    tenant: str
    bucket: str
    reason: str
    expires_at: float | None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Held]).decode


def encode(held: Iterable[Held]) -> bytes:
    """The value of one field of the projection."""
    return _encode(list(held))


def decode(value: bytes) -> list[Held]:
    """The counterpart of :func:`encode`."""
    return _decode(value)


def verdict(held: Sequence[Held], tenant: str, bucket: str, now: float) -> str | None:
    """The most serious reason among entries that hold for this tenant and bucket now, or None."""
    best: str | None = None
    for entry in held:
        if entry.expires_at is not None and entry.expires_at <= now:
            continue
        if entry.tenant not in ("", tenant) or entry.bucket not in ("", bucket):
            continue
        if best is None or _RANK.get(entry.reason, 99) < _RANK.get(best, 99):
            best = entry.reason
    return best
