"""The operations on jobs, in the order a job meets them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from mailweir.contracts.events import Attempt
from mailweir.contracts.job import Accepted, Bucket, Content, Job, NewMessage
from mailweir.contracts.lifecycle import State
from mailweir.contracts.route import Chunk, Orders


@dataclass(frozen=True, slots=True)
class Flow:
    """Waiting jobs that share lane, tenant and priority; claimed in due order."""

    bucket: Bucket
    lane: str
    tenant: str
    priority: int
    head_due: float  # due time of its first job


@dataclass(frozen=True, slots=True)
class Pick:
    """How many jobs to claim from a flow."""

    flow: Flow
    limit: int


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """A row of ``decisions`` (see schema); ``body`` is JSON text."""

    id: int
    job_id: int
    at: float
    snapshot: str
    policy_version: int
    outcome: str
    pool: str | None
    source: str | None
    queue: str | None
    rule: str | None
    reason: str | None
    body: str | None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Jobs that go to a bucket queue together."""

    chunk: Chunk
    pool: dict[int, str]  # job -> pool
    orders: dict[int, Orders]


@dataclass(frozen=True, slots=True)
class Move:
    """A waiting job that is held (with a due time) or ended by the router."""

    job_id: int
    state: State  # HELD, REFUSED, EXPIRED, BOUNCED
    due_at: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Work:
    """A taken job as the worker needs it."""

    job: Job
    pool: str
    source: str
    orders: Orders
    content_id: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a taken job. ``attempt`` is None when no attempt was spent (held, given back)."""

    job_id: int
    chunk_id: int
    state: State
    due_at: float | None = None
    reason: str | None = None
    stay_with: str | None = None
    attempt: Attempt | None = None


@dataclass(frozen=True, slots=True)
class Conflict:
    """Same idempotency key, other content (P5): HTTP 409."""

    tenant: str
    key: str


@dataclass(frozen=True, slots=True)
class ExpiredLease:
    """A taken chunk whose lease ran out, with the jobs still ``sending`` in it."""

    chunk_id: int
    epoch: str | None
    jobs: tuple[int, ...]


@dataclass(slots=True)
class Batch:
    """Jobs a router has claimed and must settle before it leaves the ``with`` block."""

    jobs: list[Job]
    won: set[int] = field(default_factory=set)

    def settle(
        self,
        dispatches: Sequence[Dispatch],
        moves: Sequence[Move],
        decisions: Sequence[DecisionRow],
    ) -> list[Chunk]:
        """Write everything in one transaction; the chunks to publish, without jobs lost to another
        router. A job named nowhere stays as it was."""
        raise NotImplementedError


class Spool:
    """The job store over one database. Thread-safe; every write is one short transaction."""

    # --- doors
    def accept(self, messages: Sequence[NewMessage]) -> list[Accepted | Conflict]:
        """Commit messages with their jobs in one transaction (group commit), answer in order.

        Same tenant and idempotency key as an earlier or a concurrent call: its answer again
        (``duplicate=True``) when ``request_hash`` agrees, else :class:`Conflict`. Keys older than the
        setting's hours do not count."""
        raise NotImplementedError

    # --- router
    def flows(self, bucket: Bucket, now: float) -> list[Flow]:
        """Flows with a waiting job, whatever its due time, by a loose index scan."""
        raise NotImplementedError

    @contextmanager
    def claim(self, picks: Sequence[Pick], now: float) -> Iterator[Batch]:
        """Claim due jobs of the picked flows; two routers never dispatch the same one (SQLite:
        optimistic, settled by compare-and-set; PostgreSQL: SKIP LOCKED in one transaction)."""
        raise NotImplementedError
        yield

    def in_window(self) -> dict[str, int]:
        """Jobs dispatched and not yet taken, per queue."""
        raise NotImplementedError

    # --- worker
    def take(self, chunk: Chunk, worker: str, lease: float, epoch: str | None) -> list[Work]:
        """Move the chunk's jobs dispatched -> sending under a lease (seconds, database clock) and
        return those that may be sent. Taking a chunk twice returns nothing the second time."""
        raise NotImplementedError

    def contents(self, ids: Sequence[int]) -> dict[int, Content]:
        """Contents by id."""
        raise NotImplementedError

    def renew(self, chunk_ids: Sequence[int], worker: str, lease: float) -> set[int]:
        """Prolong leases; the chunks still ours."""
        raise NotImplementedError

    def outcomes(self, outcomes: Sequence[Outcome], done_chunks: Sequence[int] = ()) -> set[int]:
        """Write outcomes and attempts by compare-and-set in one transaction, close finished chunks;
        the ids of jobs that were no longer ours (nothing was written for them)."""
        raise NotImplementedError

    # --- reconciler
    def expired_leases(self, limit: int = 100) -> list[ExpiredLease]:
        """Taken chunks whose lease ran out."""
        raise NotImplementedError

    def free(self, chunk_id: int, uncertain: dict[int, float | None], due: Sequence[int], now: float, max_crashes: int) -> None:
        """End a lost lease: jobs marked in data become UNCERTAIN (with the given due time, or None to
        leave them), the others DUE; a job that lost ``max_crashes`` leases becomes a dead letter."""
        raise NotImplementedError

    def lost_chunks(self, lost_after: float, empty_since: dict[str, float]) -> list[int]:
        """Untaken chunks that are provably gone: a later chunk of the queue was taken over
        ``lost_after`` seconds ago, or the queue has been empty that long (``empty_since``: queue ->
        real time since which the broker's queue was seen empty, nothing unacknowledged)."""
        raise NotImplementedError

    def redispatch(self, chunk_ids: Sequence[int], now: float) -> int:
        """Jobs of untaken chunks become DUE again; how many."""
        raise NotImplementedError

    # --- operator
    def cancel(self, now: float, *, job: int | None = None, message: int | None = None, campaign: str | None = None, tenant: str | None = None) -> int:
        """Cancel what has not been taken by a worker; how many jobs."""
        raise NotImplementedError

    def job(self, job_id: int) -> Job | None:
        """One job."""
        raise NotImplementedError

    def jobs_of(self, message_id: int) -> list[Job]:
        """Jobs of a message."""
        raise NotImplementedError

    def counts(self) -> dict[str, dict[str, int]]:
        """bucket -> state -> jobs."""
        raise NotImplementedError

    def prune(self, now: float, keep_content: float, keep_jobs: float, limit: int) -> int:
        """Delete what has outlived its keeping, at most ``limit`` rows; how many."""
        raise NotImplementedError
