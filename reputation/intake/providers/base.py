"""What the webhooks of all relays share: the call, the refusals, times, and how a bounce is judged."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parseaddr
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from mailweir.contracts.events import BounceClass, EventType, Feedback, Suppress
from mailweir.mail import dsn
from mailweir.mail.bounce_judge import classify_failure
from mailweir.mail.classify import of_category

MAX_AGE = 30 * 86400.0
"""How old an event of an impossible time is taken to be, seconds, when it is in the past."""

FIRST = 1_262_304_000.0
"""2010: no webhook of these relays is older. Earlier times are clamped, and tagged, as future ones are."""

SIGNED_WITHIN = 300.0
"""Seconds a signed call may be off our clock."""

CLAMPED = "time-clamped"
UNTIMED = "time-missing"


class Refused(Exception):
    """The call is forged, stale or replayed: HTTP 401, nothing is changed."""


class BadPayload(Exception):
    """Nothing can be made of the body: HTTP 400."""


class Partly(Exception):
    """An item of several recipients, some of which cannot be read; ``events`` are those of the others."""

    def __init__(self, events: list[Feedback], why: str) -> None:
        super().__init__(why)
        self.events = events


MAX_RECIPIENTS = 1000
"""Of one item; no relay takes a mail to so many."""

_SHAPES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


def shape(item: Any) -> str:
    """What a JSON value is, in the words of its documentation."""
    return _SHAPES.get(type(item), "a number")


UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What reading an item raises that is not as documented."""


class Call(NamedTuple):
    """One webhook call. Header names are lower case; ``secrets`` are those in force, newest first, empty:
    not to be verified. ``now`` is real time: signatures are made by others' clocks."""

    headers: Mapping[str, str]
    body: bytes
    secrets: tuple[str, ...]
    now: float
    fetch_certificate: Callable[[str], bytes] | None = None
    topics: frozenset[str] = frozenset()  # SNS topics that may speak; empty: any

    def header(self, name: str) -> str:
        """A header, or ""."""
        return self.headers.get(name, "")


class Webhook(NamedTuple):
    """One relay's webhooks: ``verify`` raises :class:`Refused` or returns the id that may come only once
    (None: event ids do); ``items`` splits the payload; ``read`` makes the events of one item and may
    raise :data:`UNREADABLE` for one that is not as documented, or :class:`Partly`."""

    name: str
    verify: Callable[[Call], str | None]
    items: Callable[[Any, Call], list[Any]]
    read: Callable[[Any, Call], list[Feedback]]
    form: Callable[[Mapping[str, str]], Any] | None = None  # from a form post to the JSON's shape
    subscription: Callable[[Any], str | None] | None = None  # the URL that confirms a subscription


def same(left: str | bytes, right: str | bytes) -> bool:
    """Equality in constant time."""
    a = left.encode() if isinstance(left, str) else left
    b = right.encode() if isinstance(right, str) else right
    return hmac.compare_digest(a, b)


def check_time(stamp: str, now: float) -> float:
    """The signed time as Unix seconds. Raises :class:`Refused` when it is no time or too far off."""
    try:
        at = float(stamp)
    except ValueError:
        raise Refused("the signed timestamp is not a number") from None
    if not math.isfinite(at) or abs(now - at) > SIGNED_WITHIN:
        raise Refused("the signed timestamp is more than 5 minutes off")
    return at


def check_shared(call: Call) -> str | None:
    """Basic or bearer authentication, for relays that sign nothing. A secret ``user:password`` is Basic's;
    any secret may be the bearer token."""
    scheme, _, given = call.header("authorization").partition(" ")
    for secret in call.secrets:
        if scheme.lower() == "bearer" and same(given.strip(), secret):
            return None
        if scheme.lower() == "basic":
            try:
                plain = base64.b64decode(given.strip(), validate=True)
            except (binascii.Error, ValueError):
                continue
            if same(plain, secret):
                return None
    raise Refused("the Authorization header is missing or wrong")


def moment(value: Any, now: float) -> tuple[float, tuple[str, ...]]:
    """An event's time (Unix seconds or milliseconds, ISO 8601, RFC 2822), and tags: clamped where it is
    impossible, now where the event says none.

    Raises one of :data:`UNREADABLE` when it cannot be read.
    """
    if value is None or value == "":
        return now, (UNTIMED,)
    if isinstance(value, bool):
        raise TypeError("no time")
    try:
        at = float(value)
    except ValueError:
        at = _parse_text(str(value))
    if not math.isfinite(at):
        raise ValueError("time is not finite")
    if at > 1e11:
        at /= 1000.0
    clamped = min(at if at >= FIRST else now - MAX_AGE, now + SIGNED_WITHIN)
    return clamped, (CLAMPED,) if clamped != at else ()


def _parse_text(value: str) -> float:
    text = value.strip()[:64]
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00").replace(" UTC", "+00:00"))
    except ValueError:
        from email.utils import parsedate_to_datetime

        found = parsedate_to_datetime(text)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def text(value: Any, limit: int = 2000) -> str | None:
    """A payload's text field, bounded; None for what is empty or not a text."""
    return value[:limit] if isinstance(value, str) and value else None


def address(value: Any) -> str:
    """A recipient. Raises ``ValueError`` for what is no address, or more than one."""
    if not isinstance(value, str) or not 3 <= len(value) <= 400 or "@" not in value:
        raise ValueError("no recipient")
    found: str = parseaddr(value)[1] if "<" in value else value.strip()
    local, at, _ = found.rpartition("@")
    if not at or any(c.isspace() or ord(c) < 32 for c in found):
        raise ValueError("no recipient")
    if not local.startswith('"') and any(c in local for c in "@,;"):
        raise ValueError("more than one recipient")
    return found


def message_ids(*values: Any) -> tuple[str, ...]:
    """The ids a payload gives a mail (ours or the relay's), without angle brackets; at most 8, bounded."""
    found = [
        str(value).strip().strip("<>")
        for value in values
        if isinstance(value, (str, int)) and not isinstance(value, bool)
    ]
    return tuple(
        dict.fromkeys(text[:255] for text in found if len(text) >= 8 and text.isprintable())
    )[:8]


def event_id(provider: str, *parts: object) -> str:
    """The dedupe key of an event; long and odd ones are hashed to fit the column."""
    key = ":".join([provider, *(str(p) for p in parts)])
    if len(key) <= 200 and key.isascii() and key.isprintable():
        return key
    return f"{provider}:{hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()}"


def digest(item: Any) -> str:
    """Names an event that brings no id of its own by what it says."""
    return hashlib.sha256(msgspec.json.encode(item, order="deterministic")).hexdigest()[:32]


_TYPED = re.compile(r"\s*(?:smtp|x-[\w-]{1,30})\s*;\s*", re.IGNORECASE)
"""The type in front of a Diagnostic-Code (RFC 3464 2.3.6) that a relay passes on."""

COMPLAINT = Suppress("recipient", None)


def judged(
    event: Feedback,
    *,
    reply: str | None,
    status: str | None = None,
    told: str | None = None,
    permanent: bool = True,
) -> Feedback:
    """A bounce or deferral with its category: from the remote's words; where they say nothing certain, from
    what the relay ``told``. A relay's "not permanent" outranks words that sound final."""
    found = classify_failure(with_status(reply or "", status), status, event.recipient)
    unclear = (
        found.category in ("unknown", "policy_block", "server_error") and found.confidence < 0.8
    )
    if told is not None and (unclear or found.category == "unknown" or found.confidence < 0.6):
        found = of_category(told, permanent=permanent)
    reply = None if reply is None else _TYPED.sub("", reply, count=1)
    cls, suppress = found.cls, found.suppress
    if not permanent:
        cls = BounceClass.SOFT if cls is BounceClass.HARD else cls
        suppress = None
    return msgspec.structs.replace(
        event, category=found.category, cls=cls, suppress=suppress, reply=reply, status=status
    )


def with_status(reply: str, status: str | None) -> str:
    """Words with the enhanced code in front, where they do not hold one."""
    return str(dsn.with_status(reply, status))


def simple(event: Feedback, reply: Any = None) -> Feedback:
    """Completes an event that is no bounce: a complaint asks for suppression, so does an unsubscription.
    ``reply``: the payload's words about it, if they are a text."""
    event = msgspec.structs.replace(event, reply=text(reply))
    if event.type in (EventType.COMPLAINED, EventType.UNSUBSCRIBED):
        return msgspec.structs.replace(event, cls=BounceClass.NONE, suppress=COMPLAINT)
    return msgspec.structs.replace(event, cls=BounceClass.NONE)


def form_fields(body: bytes) -> dict[str, str] | None:
    """The fields of a form post (application/x-www-form-urlencoded), the last of each name; None for what
    looks like JSON or no form at all."""
    if body.lstrip()[:1] in (b"{", b"[") or b"=" not in body:
        return None
    try:
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=500))
    except (UnicodeError, ValueError):
        return None


def listed(payload: Any) -> list[Any]:
    """A payload that is one event or an array of them. Raises :class:`BadPayload`."""
    items: Sequence[Any] = payload if isinstance(payload, list) else [payload]
    if len(items) > 10_000:
        raise BadPayload("more than 10,000 events in one call")
    return list(items)
