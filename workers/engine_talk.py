"""One site's mails of a chunk, as their transport asks for them: who may go, who has begun, how each ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from mailweir.contracts.lifecycle import State
from mailweir.contracts.snapshot import Snapshot
from mailweir.plumbing.clock import Clock
from workers.connections import Connections
from workers.delivery.owner import Booked, Owner
from workers.delivery.types import Envelope, Result
from workers.engine_gate import GATED, SHORT_WAIT, Gate
from workers.engine_purse import Refusal
from workers.engine_run import Ready, Run
from workers.engine_views import Views
from workers.policy.outcome import CUT
from workers.policy.stopped import stopped
from workers.writer import Writer

ROUTED_ANEW = 1.0
"""Real seconds a job stays away whose way was stopped after it was routed: by then the router has read the
snapshot that says so, and chooses another way or holds it."""


class Parts(Protocol):
    """What of an engine a talk needs."""

    @property
    def clock(self) -> Clock: ...
    @property
    def gate(self) -> Gate: ...
    @property
    def writer(self) -> Writer: ...
    @property
    def connections(self) -> Connections: ...
    @property
    def views(self) -> Views: ...


class Talk(Owner):
    """The owner of these mails. A job that may not go has its outcome when it was told so."""

    def __init__(self, parts: Parts, run: Run, site: str, some: Sequence[Ready]) -> None:
        self._parts, self._run, self._site, self._some = parts, run, site, some
        self._told: dict[int, float] = {}  # job -> when it was told that it may go, before its turn
        self._archived = any(ready.work.orders.archive for ready in some)
        self._asked = time.monotonic()
        self._snapshot: Snapshot | None = None  # what ``_stops`` was worked out from
        self._stops: dict[tuple[str, str], str | None] = {}  # (pool, tenant) -> why it may not go

    async def admitted(self) -> list[Ready]:
        """The mails for which a connection is worth opening."""
        some = [ready for ready in self._some if not self._refused(ready)]
        if not some:
            return []
        if await self._parts.gate.admit(some[0].purse, self._run.starts):
            return some
        # no token soon: most will be held, and nobody is dialled for them
        await asyncio.gather(*(self._tell(ready.work.job.id) for ready in some))
        return [ready for ready in some if ready.work.job.id in self._told]

    # --- see Owner --------------------------------------------------------------------------
    def at_once(self, envelope: Envelope) -> bool | None:
        """True where it was told so a moment ago, or its chunk holds a token and was asked about."""
        job_id, run = envelope.job_id, self._run
        if self._told and (since := self._told.pop(job_id, None)) is not None:
            return True if time.monotonic() - since < SHORT_WAIT else None
        if not self._parts.writer.has_room:
            return None
        if job_id not in run.pending:
            return False
        ready = run.ready[job_id]
        if self._refused(ready):
            return False
        return self._parts.gate.at_once(ready.work.job, ready.purse) or None

    async def ask(self, envelope: Envelope) -> bool:
        """Whether it may go, by suppression list and throttles."""
        await self._parts.writer.room()
        run, ready = self._run, self._run.ready[envelope.job_id]
        if envelope.job_id not in run.pending or self._refused(ready):
            return False
        job, purse = ready.work.job, ready.purse
        refusal = await self._parts.gate.enter(job, purse, run.starts)
        if refusal is not None:
            run.refuse(job.id, refusal)
        return refusal is None

    def begins(self, envelope: Envelope) -> Booked:
        """Marked *in data*."""
        self._run.began[envelope.job_id] = self._parts.clock.now()
        return self._parts.gate.mark(self._run.chunk.id, envelope.job_id)

    def still(self, envelope: Envelope) -> bool:
        """Not where the worker stood still beyond its lease: who had the job freed saw no mark, and others
        may be sending it."""
        if self._run.holds():
            return True
        self.unsent(envelope)
        self._run.give_back(envelope.job_id, "the worker's lease ran out before its content went")
        return False

    def unsent(self, envelope: Envelope) -> None:
        """Nothing of it can be out: where its worker stops now it goes back."""
        self._run.began.pop(envelope.job_id, None)
        self._parts.gate.ended(self._run.chunk.id, envelope.job_id)

    def ended(self, result: Result) -> None:
        """The outcome is written; the place earns connections, or loses them."""
        run, told = self._run, self._parts.connections.told
        self._parts.gate.ended(run.chunk.id, result.job_id)
        run.settle(result)
        if result.accepted:
            told(run.source.name, self._site, True)
            if self._archived and run.ready[result.job_id].work.orders.archive:
                run.copies.append(run.ready[result.job_id])
        elif result.error is not None and result.error != CUT:
            told(run.source.name, self._site, False)

    async def before_dial(self, waiting: Sequence[Envelope]) -> bool:
        """A path that was shut meanwhile is not dialled, nor any for jobs that may not start."""
        if not self._run.starts():
            for envelope in waiting:
                self._refused(self._run.ready[envelope.job_id])
            return False
        if time.monotonic() - self._asked < SHORT_WAIT:
            return True
        purses = {self._run.ready[envelope.job_id].purse for envelope in waiting}
        if not any([await self._parts.gate.shut(purse) for purse in purses]):
            return True
        await asyncio.gather(*(self._tell(envelope.job_id) for envelope in waiting))
        return any(envelope.job_id in self._told for envelope in waiting)

    def crowded(self, envelopes: Sequence[Envelope]) -> None:
        """They are held a moment."""
        self._run.crowded(envelopes)

    # --- inside -----------------------------------------------------------------------------
    async def _tell(self, job_id: int) -> None:
        """Whether it may go, before its turn: it has not begun."""
        if await self.ask(self._run.ready[job_id].envelope):
            self._told[job_id] = time.monotonic()

    def _refused(self, ready: Ready) -> bool:
        """A job that may not start whatever the gate says; it has its outcome then."""
        job, run = ready.work.job, self._run
        if not run.starts():
            run.give_back(job.id, "the worker starts no more jobs of this chunk")
            return True
        if job.expires_at is not None and self._parts.clock.now() >= job.expires_at:
            run.refuse(job.id, Refusal(State.EXPIRED, None, "expired before it could be sent"))
            return True
        if (why := self._stopped(ready)) is not None:
            GATED.labels("stopped").inc()
            due = self._parts.clock.now() + ROUTED_ANEW * self._parts.clock.rate
            run.refuse(job.id, Refusal(State.DUE, due, f"{why}: routed anew"))
            return True
        return False

    def _stopped(self, ready: Ready) -> str | None:
        """Why its way was stopped since it was routed, or None; worked out once for each snapshot."""
        snapshot, run = self._parts.views.snapshot, self._run
        if snapshot is not self._snapshot:
            self._snapshot, self._stops = snapshot, {}
        kind = (ready.work.pool, ready.work.job.tenant)
        if kind not in self._stops:
            pool = run.policy.pools.get(kind[0])
            # a paused pool's fallback relays go on
            own = kind[0] if pool is None or run.source.name not in pool.relays else ""
            names = (run.source.name, own, ready.provider.name, run.chunk.bucket, kind[1])
            self._stops[kind] = stopped(snapshot, *names, self._parts.clock.now())
        return self._stops[kind]
