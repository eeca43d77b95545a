"""What the spool's operations take and give, beside the contracts."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mailweir.contracts.events import Attempt
from mailweir.contracts.job import Bucket, Job, JobMeta
from mailweir.contracts.lifecycle import WAITING, State
from mailweir.contracts.route import Chunk, Orders


@dataclass(frozen=True, slots=True)
class Flow:
    """Waiting jobs that share lane, tenant, priority and engagement; claimed in due order."""

    bucket: Bucket
    lane: str
    tenant: str
    priority: int
    head_due: float  # due time of its first job, policy seconds
    engaged: bool = False  # marketing to recipients who lately opened or clicked

    @property
    def key(self) -> str:
        """The ``flow`` column."""
        return flow_key(self.lane, self.tenant, self.priority, engaged=self.engaged)


def is_engaged(bucket: Bucket, meta: JobMeta) -> bool:
    """Whether a job goes before others of its priority: engaged marketing (S22)."""
    return bucket is Bucket.MARKETING and meta.engagement == "high"


def flow_key(lane: str, tenant: str, priority: int, *, engaged: bool = False) -> str:
    """The ``flow`` column: a lane holds no ``|``, a tenant may."""
    return f"{lane}|{tenant}|{priority}{'+' if engaged else ''}"


def parse_flow(bucket: Bucket, key: str, head_due: float) -> Flow:
    """The flow behind its column."""
    lane, _, rest = key.partition("|")
    tenant, _, priority = rest.rpartition("|")
    engaged = priority.endswith("+")
    return Flow(bucket, lane, tenant, int(priority.removesuffix("+")), head_due, engaged)


@dataclass(frozen=True, slots=True)
class Pick:
    """How many jobs to claim from a flow."""

    flow: Flow
    limit: int


class DecisionRow(msgspec.Struct, frozen=True):
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


class Dispatch(msgspec.Struct, frozen=True):
    """Jobs that go to a bucket queue together."""

    chunk: Chunk
    pool: dict[int, str]  # job -> pool
    orders: dict[int, Orders]


class Move(msgspec.Struct, frozen=True):
    """A waiting job that is held (with a due time) or ended by the router."""

    job_id: int
    state: State  # HELD, REFUSED, EXPIRED, BOUNCED, DEAD_LETTER
    due_at: float | None
    reason: str


class Work(msgspec.Struct, frozen=True):
    """A taken job as the worker needs it."""

    job: Job
    pool: str
    source: str
    orders: Orders
    content_id: int


class Outcome(msgspec.Struct, frozen=True):
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
class Unstorable:
    """The database can never store this message (a NUL in a text, a column too long): a door let
    through what it should have refused. The others of the group are not harmed."""

    message_id: int
    why: str


@dataclass(frozen=True, slots=True)
class ExpiredLease:
    """A taken chunk whose lease ran out, with the jobs still ``sending`` in it."""

    chunk_id: int
    epoch: str | None
    jobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Backlog:
    """Waiting jobs of a bucket."""

    due: int  # may be routed now
    later: int  # due later: scheduled, held, deferred
    oldest_due: float | None  # due time of the job that has been due longest, policy seconds


def check_due(state: State, due_at: float | None) -> None:
    """A due time exactly where the job waits; an uncertain job may be left without one (N41).

    Raises :class:`ValueError`."""
    if due_at is None:
        if state in WAITING and state is not State.UNCERTAIN:
            raise ValueError(f"a {state} job needs a due time, or it would never be routed again")
    elif state not in WAITING:
        raise ValueError(f"a {state} job has no due time, or it would be routed again")
