"""A job: one mail to one recipient, as the doors accept it and the spool keeps it.

At the doors the noun is *message* (one call, many recipients); :class:`NewMessage` is a message that
passed every check of the door, ready to be committed, and holds one :class:`NewJob` per recipient.
Times are policy seconds (``clock.now()``, Unix epoch) unless the name says ``real``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

DEFAULT_PRIORITY = 5


class Bucket(StrEnum):
    """The traffic class of a job. Nothing else is called a bucket."""

    TRANSACTIONAL = "transactional"
    MARKETING = "marketing"
    BULK = "bulk"


BUCKET_ALIASES = {"notification": Bucket.TRANSACTIONAL, "system": Bucket.TRANSACTIONAL}
"""Seed words accepted at the doors; both mean transactional with normal priority (S1)."""


class ContentKind(StrEnum):
    """How ``Content.body`` is to be read."""

    MIME = "mime"  # RFC 5322 bytes with CRLF line ends, not dot-stuffed
    SKELETON = "skeleton"  # msgpack of a compiled template (mailweir.mail.skeleton)


class Content(msgspec.Struct, frozen=True):
    """What is sent, stored once however many jobs share it (P6)."""

    id: int
    kind: ContentKind
    body: bytes
    sha256: bytes  # of the body; also part of the idempotency check


class Wishes(msgspec.Struct, frozen=True, omit_defaults=True):
    """Routing wishes of the submitter (S3); a door lets through only what the credential may ask."""

    pool: str | None = None  # X-Mailweir-Pool
    route: str | None = None  # X-Mailweir-Route: a source or fallback relay by name


class JobMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What rules may match on and feedback must carry, beside the columns; one JSON column."""

    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    headers: dict[str, str] = msgspec.field(default_factory=dict)  # lower-case names, for rules
    campaign: str | None = None
    engagement: str = "normal"  # high | normal
    risk: str | None = None
    residency: str | None = None
    api_key: str | None = None  # the key's id, never its secret
    sending_domain: str | None = None
    unsubscribe: bool = False  # the door adds List-Unsubscribe with our one-click token
    send_at: float | None = None  # asked-for time; age limits count from here, else from accept
    sandbox: bool = False  # P7: goes the whole way but never leaves
    wishes: Wishes = Wishes()
    # Header lines put before the content when it is composed, fixed at accept so that every attempt
    # sends the same bytes (Message-ID, Date, List-Unsubscribe, Feedback-ID, reference header).
    prepend: str = ""


class NewJob(msgspec.Struct, frozen=True):
    """One recipient of a message, checked and ready to commit."""

    id: int
    recipient: str  # as the wire will name it: local part as given, domain as A-label, lower case
    mail_from: str  # RFC 5321 reverse-path without VERP; "" is the null sender
    lane: str  # provider by the recipient's domain, or "~hh" (a hash) where no rule knows it
    variables: dict[str, Any] | None = None  # for a skeleton
    # Header lines of this recipient only; the spool keeps them in front of the message's own
    # ``meta.prepend`` in the job's meta
    prepend: str = ""


class NewMessage(msgspec.Struct, frozen=True):
    """One accepted call of a door: everything its jobs share, and the jobs."""

    id: int
    tenant: str
    bucket: Bucket
    priority: int  # 1 first .. 10
    content: Content
    meta: JobMeta
    jobs: tuple[NewJob, ...]
    send_at: float  # not routed before; now when the caller gave none
    expires_at: float | None  # not sent after; None: the bucket's age limit decides
    idempotency_key: str | None = None
    request_hash: bytes = (
        b""  # sha256 of what the caller sent; same key + other hash = conflict (P5)
    )


class JobStatus(msgspec.Struct, frozen=True):
    """One line of the door's answer."""

    recipient: str
    id: str
    status: str  # accepted | duplicate | refused
    reason: str | None = None


class Accepted(msgspec.Struct, frozen=True):
    """The door's answer: ``202`` with the message id and one line per recipient (S1)."""

    id: str
    jobs: tuple[JobStatus, ...]
    duplicate: bool = False  # the same idempotency key was accepted before: its answer again


class Job(msgspec.Struct, frozen=True):
    """A job as router and workers read it from the spool."""

    id: int
    message_id: int
    tenant: str
    bucket: Bucket
    priority: int
    recipient: str
    mail_from: str
    lane: str
    content_id: int
    state: str
    accepted_at: float
    due_at: float | None
    expires_at: float | None
    attempts: int  # spent attempts; our own waiting spends none
    meta: JobMeta
    variables: dict[str, Any] | None = None
    reason: str | None = None  # why it is held, deferred, refused
    stay_with: str | None = None  # source it must keep: greylisting, uncertain (S35, N41)
    first_attempt_at: float | None = None
    crashes: int = 0  # leases that ran out while sending; a poison job ends as dead letter
    size: int = 0  # bytes of its content: of the mail, but for what is put in and in front

    @property
    def recipient_key(self) -> str:
        """The recipient's canonical form: the door has parsed it."""
        return self.recipient.lower()

    @property
    def domain(self) -> str:
        """The recipient's domain, lower case, A-label."""
        return self.recipient.rpartition("@")[2]
