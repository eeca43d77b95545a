"""What the router says of one job: routed, held or refused; and what a chunk carries to a worker."""

from __future__ import annotations

import msgspec

from mailweir.contracts.job import Bucket

THROTTLED = ".throttled"

SENT_BACK = "throttle: "
"""So begins the reason of a job that a worker sent back to wait for its place; behind it the layer."""


def queue_name(bucket: str, *, throttled: bool = False, region: str | None = None) -> str:
    """The bucket queue: ``bulk``, ``bulk.throttled``, ``bulk.throttled@eu`` (S11, regions)."""
    name = bucket + (THROTTLED if throttled and bucket != Bucket.TRANSACTIONAL else "")
    return f"{name}@{region}" if region else name


class Orders(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the matched rule asks of the worker beyond the source; rides with the job's row."""

    rule: str = ""
    provider: str = ""  # provider the limits were chosen for (the worker refines it from MX)
    tls: str | None = None  # opportunistic | required | verified | none
    sign: bool = False  # a DKIM signature is required: without a key the job is held, not sent bare
    retry_hard: bool = True  # False: "no retry on hard bounce" taken literally for 5yz of any kind
    strict: bool = False  # strict limits: the cold ceiling applies even on a warm path
    daily_limit: int | None = None  # rule's own jobs per day
    rate: str | None = None  # rule's own throttle, e.g. "100/min"
    archive: str | None = None  # address that gets a copy
    relay: str | None = None  # fallback relay used in place of the pool's sources
    priority: int | None = None  # the rule's priority, kept when the job comes back
    back: bool = False  # a throttle sent the job back to wait: its place comes before newcomers'
    arm: str = ""  # A/B arm that was drawn, "split/pool" or "split/pool/source" (S20)


class Rejected(msgspec.Struct, frozen=True, omit_defaults=True):
    """One losing candidate and why, in words that name the limit."""

    pool: str
    source: str
    why: str
    weight: float = 0.0
    score: float | None = None


class Routed(msgspec.Struct, frozen=True, tag="routed"):
    """The job goes to ``queue``, by ``source`` of ``pool``."""

    queue: str
    pool: str
    source: str
    provider: str
    orders: Orders
    score: float
    reasons: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    precedence: str = "rule"  # header | affinity | rule | default: the level that chose the pool


class Held(msgspec.Struct, frozen=True, tag="held"):
    """We wait until ``until`` (policy seconds); no attempt is spent. Never without time and reason."""

    until: float
    reason: str
    rejected: tuple[Rejected, ...] = ()
    rule: str = ""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Ended by us: suppressed, recipient_limit, policy..., with a sentence for the submitter."""

    reason: str
    detail: str = ""
    rule: str = ""


Decision = Routed | Held | Refused


class Chunk(msgspec.Struct, frozen=True):
    """What one Celery message carries: ids of jobs of one bucket and source. The id is the fence."""

    id: int
    bucket: Bucket
    queue: str
    source: str
    jobs: tuple[int, ...]
    size: int = 0  # bytes of its jobs' contents, each job's counted
