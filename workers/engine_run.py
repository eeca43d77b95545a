"""One chunk on its way through a worker: which of its jobs still need an outcome, and giving it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import msgspec
import structlog
from prometheus_client import Histogram

from mailweir.contracts.events import Attempt, Classification
from mailweir.contracts.ids import new_id
from mailweir.contracts.lifecycle import State
from mailweir.contracts.policy import Policy, Provider, Source
from mailweir.contracts.route import SENT_BACK, Chunk
from mailweir.contracts.snapshot import Snapshot
from mailweir.mail.classify import classify, enhanced_of
from mailweir.plumbing.clock import Clock, since_boot
from mailweir.spool.store import Outcome, Work
from workers.campaigns import Campaigns, name_of
from workers.delivery.types import Envelope, Result
from workers.engine_purse import Purse, Refusal
from workers.patience import Patience
from workers.policy.outcome import Verdict, decide
from workers.throttle.layers import Ask
from workers.writer import PathNote, Writer

log = structlog.get_logger(__name__)

PATH_HOLD_MAX = 3600.0
"""Policy seconds a path stays away at most because a reply named a time."""
WAIT_AGAIN = 60.0
"""Policy seconds until a job is looked at again that waits for something an operator must mend."""

NO_CONNECTION_WAIT = 2.0
"""Real seconds a job stays away when other workers have all connections its site may have."""

SECONDS = Histogram(
    "mailweir_attempt_seconds",
    "Real seconds of an attempt, by stage where it ended.",
    ["stage"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900),
)
_seconds_of = cache(SECONDS.labels)  # asked for every mail


class Ready(msgspec.Struct, frozen=True):
    """A job composed, with where its limits lie."""

    work: Work
    envelope: Envelope
    provider: Provider
    purse: Purse


@dataclass(slots=True)
class Run:
    """The jobs of a taken chunk. Every job leaves ``pending`` exactly once, with its outcome."""

    chunk: Chunk
    source: Source
    policy: Policy
    snapshot: Snapshot
    writer: Writer
    clock: Clock
    chance: float
    reply_kept: int
    pending: dict[int, Work]
    campaigns: Campaigns
    connection_patience: Patience
    token_patience: Patience
    resent: frozenset[int] = frozenset()  # jobs with an uncertain attempt behind them
    ready: dict[int, Ready] = field(default_factory=dict)
    alike: dict[tuple[object, ...], Purse] = field(
        default_factory=dict
    )  # by what decides the layers
    # by limits, and whether they wait for the second time
    purses: dict[tuple[Ask, bool], Purse] = field(default_factory=dict)
    began: dict[int, float] = field(default_factory=dict)  # at the remote: policy time it began
    started: float = field(default_factory=time.monotonic)
    ends: float = math.inf  # real monotonic time after which no more jobs are started
    leased: float = math.inf  # until then the chunk is surely ours, see ``since_boot``
    stopped: bool = False  # start no more jobs
    copies: list[Ready] = field(default_factory=list)  # accepted by the remote, to be archived

    def starts(self) -> bool:
        """Whether jobs are still started. A worker that stood still beyond its lease starts none, though
        nobody has told it yet: others may have them."""
        return not self.stopped and time.monotonic() < self.ends and self.holds()

    def holds(self) -> bool:
        """Whether the chunk is surely still ours."""
        return since_boot() < self.leased

    def refuse(self, job_id: int, refusal: Refusal) -> None:
        """Our own no: no attempt is spent."""
        self._put(job_id, refusal.state, refusal.due_at, refusal.reason)

    def give_back(self, job_id: int, why: str) -> None:
        """The job may be routed again at once."""
        self._put(job_id, State.DUE, self.clock.now(), why)

    def hold(self, job_id: int, seconds: float, why: str) -> None:
        """The job waits so many policy seconds."""
        self._put(job_id, State.HELD, self.clock.now() + seconds, why)

    def crowded(self, envelopes: Sequence[Envelope]) -> None:
        """Every connection their site may have is at work."""
        for envelope in envelopes:
            wait = NO_CONNECTION_WAIT * self.clock.rate
            self.hold(envelope.job_id, wait, f"{SENT_BACK}connections of {self.source.name}")

    def bury(self, job_id: int, error: BaseException) -> None:
        """No code could handle it: kept and shown, and no other job is harmed."""
        log.error("job buried", job=job_id, error=type(error).__name__, exc_info=error)
        self._put(
            job_id, State.DEAD_LETTER, None, f"unhandled {type(error).__name__} in the worker"
        )

    def settle(self, result: Result) -> None:
        """An attempt ended: classify, decide, have the outcome written."""
        work = self.pending.get(result.job_id)
        if work is None:
            return
        if result.retry_after is not None and result.job_id not in self.began:
            # an API that said "later" to the mail before: this one was never sent, no attempt spent
            self.hold(result.job_id, result.retry_after, f"{self.source.name} asks to wait")
            return
        try:
            self._settle(work, result)
        except Exception as error:
            self.bury(result.job_id, error)

    def _settle(self, work: Work, result: Result) -> None:
        job, now = work.job, self.clock.now()
        ready = self.ready.get(job.id)
        provider = ready.provider if ready else None
        seen = self._classify(work, result, provider)
        retry = self.policy.bucket(job.bucket).retry
        verdict = decide(
            job,
            work.orders,
            result,
            seen,
            retry,
            source=self.source,
            now=now,
            chance=self._chance(job.id),
            provider=provider,
            resent=job.id in self.resent,
        )
        began = self.began.get(job.id, now - result.seconds * self.clock.rate)
        attempt = Attempt(
            id=new_id(),
            job_id=job.id,
            number=job.attempts + 1,
            at=began,
            source=self.source.name,
            pool=work.pool,
            provider="sandbox" if job.meta.sandbox else provider.name if provider else "",
            bucket=job.bucket,
            tenant=job.tenant,
            outcome=verdict.state,
            host=result.host[:255],
            stage=result.stage,
            code=result.code,
            enhanced=enhanced_of(result.reply),
            reply=result.reply[: self.reply_kept],
            category=verdict.category,
            blame=verdict.blame,
            seconds=result.seconds,
            layer=verdict.layer,
            suppress=verdict.suppress,
            conversation=result.conversation,
        )
        _seconds_of(result.stage).observe(result.seconds)
        if job.meta.campaign and verdict.state in (State.SENT, State.BOUNCED):
            name = name_of(job.tenant, job.meta.campaign)
            self.campaigns.note(name, verdict.state is State.BOUNCED)
        note = self._note(ready, verdict, began, now)
        self._put(job.id, verdict.state, verdict.due_at, verdict.reason, verdict, attempt, note)

    def _classify(
        self, work: Work, result: Result, provider: Provider | None
    ) -> Classification | None:
        if result.accepted or result.code is None or work.job.meta.sandbox:
            return None
        return classify(
            result.reply if result.stage != "dns" else result.reply.partition("; ")[2],
            provider=provider.name if provider else None,
            stage=None if result.stage == "dns" else result.stage,
            first_contact=work.job.attempts == 0,
        )

    def _note(
        self, ready: Ready | None, verdict: Verdict, began: float, now: float
    ) -> PathNote | None:
        if ready is None or verdict.event == "neutral":
            return None
        hold = min(verdict.path_until or 0.0, now + PATH_HOLD_MAX)
        ask = ready.purse.ask
        return PathNote(ask.source, ask.provider, ask.ceiling, verdict.event, began, hold)

    def _chance(self, job_id: int) -> float:
        """Another one for each job of the run, from the run's own."""
        return (self.chance + job_id * 0.6180339887498949) % 1.0

    def _put(
        self,
        job_id: int,
        state: State,
        due_at: float | None,
        reason: str | None,
        verdict: Verdict | None = None,
        attempt: Attempt | None = None,
        note: PathNote | None = None,
    ) -> None:
        work = self.pending.pop(job_id, None)
        if work is None:
            return
        outcome = Outcome(
            job_id,
            self.chunk.id,
            state,
            due_at,
            reason,
            verdict.stay_with if verdict else work.job.stay_with if due_at is not None else None,
            attempt,
        )
        self.writer.put(outcome, work.job.bucket, self.chunk.queue, work.job.lane, note)
