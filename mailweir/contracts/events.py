"""Events: something that happened, past tense, immutable, with its own time.

The vocabulary follows django-anymail's tracking events. An event is kept in SQL in the transaction
that made it true (``attempts`` for what workers did, ``feedback`` for what came from outside,
``decisions`` for what the router chose); a Redis stream carries ids quickly, nothing more.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class EventType(StrEnum):
    """Anymail's names (anymail/signals.py), with ``sent`` for a 250 to the final dot."""

    QUEUED = "queued"
    SENT = "sent"
    REJECTED = "rejected"
    FAILED = "failed"
    BOUNCED = "bounced"
    DEFERRED = "deferred"
    DELIVERED = "delivered"
    AUTORESPONDED = "autoresponded"
    OPENED = "opened"
    CLICKED = "clicked"
    COMPLAINED = "complained"
    UNSUBSCRIBED = "unsubscribed"
    SUBSCRIBED = "subscribed"
    UNKNOWN = "unknown"


class BounceClass(StrEnum):
    """The industry's words for a category, used at the edges."""

    HARD = "hard"
    SOFT = "soft"
    BLOCK = "block"
    NONE = "none"


class Suppress(msgspec.Struct, frozen=True):
    """What a classification asks of the suppression list."""

    scope: str  # recipient | domain | pair
    days: int | None  # None: for ever


class Classification(msgspec.Struct, frozen=True):
    """What a reply or report means (facts: RFC 3463, providers' pages); see mailweir.mail.classify."""

    category: str  # invalid_recipient, mailbox_full, rate_limited ...
    cls: BounceClass = msgspec.field(name="class")
    blame: str  # recipient | source | sender | content | remote
    retry: str  # same | other | no
    suppress: Suppress | None
    retry_after: float | None  # seconds, from the reply's own hint
    confidence: float  # 0..1
    rule: str


UNPROVEN = "unproven"
"""Tag of a report that names a job without our token: counted once, it suppresses nobody and moves no state."""


class Feedback(msgspec.Struct, frozen=True, omit_defaults=True):
    """One normalised event from outside (webhook, DSN, ARF); the raw event is kept beside it."""

    event_id: str  # dedupe key; applying the same id twice changes nothing
    type: EventType
    provider: str  # who reported: "sendgrid", "dsn", "arf" ...
    occurred_at: float
    recipient: str | None = None
    job_id: int | None = None
    tenant: str | None = None
    category: str | None = None
    cls: BounceClass | None = msgspec.field(default=None, name="class")
    status: str | None = None  # enhanced code
    reply: str | None = None  # diagnostic text
    suppress: Suppress | None = None
    source: str | None = None
    remote_host: str | None = None
    tags: tuple[str, ...] = ()
    url: str | None = None
    user_agent: str | None = None
    # ids the reporter knows the mail by: our Message-ID, reference or unsubscribe token, the relay's own id;
    # intake finds the job by them and keeps none
    message_ids: tuple[str, ...] = ()


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One try to hand a job to a remote: the row workers write with its outcome."""

    id: int
    job_id: int
    number: int  # 1 is the first
    at: float  # policy seconds, when the conversation began
    source: str
    pool: str
    provider: str
    bucket: str
    tenant: str
    outcome: str  # the state it led to: sent, deferred, bounced, uncertain, expired
    host: str = ""  # remote MX or relay host
    stage: str = ""  # connect, banner, ehlo, starttls, auth, mail, rcpt, data, dot
    code: int | None = None
    enhanced: str | None = None
    reply: str = ""  # the remote's text, at most 2,000 characters, recipient masked
    category: str | None = None
    blame: str | None = None
    seconds: float = 0.0  # duration of the attempt, real seconds
    layer: str | None = None  # failover layer that moved the job: connection, source, pool, relay
    suppress: Suppress | None = None
    conversation: str | None = None  # P44: JSON lines of the SMTP conversation with times
