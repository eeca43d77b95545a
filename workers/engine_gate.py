"""The gate each mail passes right before its recipient is named: suppression, tokens, the mark.

Whoever arrives in one turn of the loop, from whichever chunk, shares the round trips: suppression and
tokens are asked together, then those that may go are marked *in data*. A mail that must wait longer
than a worker may wait goes back to the spool with the exact time and the layer that binds.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mailweir.contracts.job import Job
from mailweir.contracts.lifecycle import State
from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import DatabaseUnavailable
from suppression.guard import Ask as Question
from suppression.guard import AsyncGuard
from workers.throttle.layers import Ask
from workers.throttle.types import Grant, Limiter

log = structlog.get_logger(__name__)

SHORT_WAIT = 0.25
"""Real seconds any mail may wait for its token; longer waits need one of the few places (below)."""
LONG_WAIT_SHARE = 0.1
"""Share of the slots in which a longer wait may happen."""
MARK_KEEP = 2 * 86400
"""Real seconds a chunk's marks are kept at most."""
BLIND_WAIT = 5.0
"""Real seconds a job stays away while neither Redis nor SQL can say whether it may go."""

GATED = Counter("mailweir_gate_total", "Mails at the gate, by what was said.", ["said"])


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a mail may not go now: the outcome of its job, no attempt spent."""

    state: State
    due_at: float | None
    reason: str


@dataclass(slots=True)
class _Entry:
    job: Job
    chunk_id: int
    ask: Ask
    said: asyncio.Future[Grant | Refusal] = field(repr=False)
    place: float = 0.0


class Gate:
    """One per process; belongs to its event loop."""

    def __init__(
        self,
        guard: AsyncGuard,
        limiter: Limiter,
        redis: Redis,
        clock: Clock,
        *,
        max_wait: float,
        slots: int,
    ) -> None:
        self._guard = guard
        self._limiter = limiter
        self._redis = redis
        self._clock = clock
        self._max_wait = max_wait
        self._long = max(1, round(slots * LONG_WAIT_SHARE))
        self._long_waits: dict[int, int] = defaultdict(int)  # chunk -> mails of it that wait long
        self._arrived: list[_Entry] = []
        self._flushing: asyncio.Task[None] | None = None
        self._marked: set[int] = set()  # chunks whose marks have an expiry

    async def enter(
        self, job: Job, chunk_id: int, ask: Ask, may_wait: Callable[[], bool]
    ) -> Refusal | None:
        """None: go now. Waits for a token as long as allowed; ``may_wait`` is asked before each wait."""
        end = time.monotonic() + self._max_wait
        while True:
            entry = _Entry(job, chunk_id, ask, asyncio.get_running_loop().create_future())
            self._arrived.append(entry)
            if self._flushing is None:
                self._flushing = asyncio.create_task(self._flush())
            said = await entry.said
            if isinstance(said, Refusal):
                return said
            if entry.place == 0.0:
                return None
            wait = self._clock.real(entry.place - said.at)
            late = time.monotonic() + wait > end
            if late or not may_wait() or not await self._wait(chunk_id, wait):
                GATED.labels("held").inc()
                return Refusal(State.HELD, entry.place, f"throttle: {said.layer}")

    def forget(self, chunk_id: int) -> None:
        """The chunk is done."""
        self._marked.discard(chunk_id)

    async def _wait(self, chunk_id: int, seconds: float) -> bool:
        """Wait, if waiting is allowed; whether it was."""
        if seconds <= SHORT_WAIT:
            await asyncio.sleep(seconds)
            return True
        waits = self._long_waits
        if chunk_id not in waits and len(waits) >= self._long:
            return False
        waits[chunk_id] += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            waits[chunk_id] -= 1
            if not waits[chunk_id]:
                del waits[chunk_id]
        return True

    async def _flush(self) -> None:
        """Serve everybody who arrived, again while more arrive."""
        await asyncio.sleep(0)  # the rest of this turn of the loop
        while self._arrived:
            batch, self._arrived = self._arrived, []
            try:
                await self._serve(batch)
            except DatabaseUnavailable:
                due = self._clock.now() + BLIND_WAIT * self._clock.rate
                why = Refusal(State.DUE, due, "suppression cannot be asked: Redis and SQL are away")
                for entry in batch:
                    _answer(entry, why)
            except Exception as error:  # each mail's own handler decides what it means for it
                for entry in batch:
                    if not entry.said.done():
                        entry.said.set_exception(error)
        self._flushing = None

    async def _serve(self, batch: list[_Entry]) -> None:
        groups: dict[Ask, list[_Entry]] = defaultdict(list)
        for entry in batch:
            groups[entry.ask].append(entry)
        questions = [
            Question(e.job.recipient, e.job.tenant, e.job.bucket, e.job.mail_from) for e in batch
        ]
        reasons, grants = await asyncio.gather(
            self._guard.check(questions),
            self._limiter.take([(ask, len(some)) for ask, some in groups.items()]),
            return_exceptions=True,
        )
        if isinstance(grants, BaseException):
            raise grants
        if isinstance(reasons, BaseException):
            for grant in grants:
                await self._limiter.give_back(grant, grant.granted)
            raise reasons
        suppressed = {
            id(entry): reason for entry, reason in zip(batch, reasons, strict=True) if reason
        }
        going: list[tuple[_Entry, Grant]] = []
        for grant, some in zip(grants, groups.values(), strict=True):
            left, places = grant.granted, iter(grant.places)
            for entry in some:
                if reason := suppressed.get(id(entry)):
                    GATED.labels("suppressed").inc()
                    _answer(entry, Refusal(State.REFUSED, None, f"suppressed: {reason}"))
                elif left:
                    left -= 1
                    going.append((entry, grant))
                else:
                    entry.place = next(places)
                    _answer(entry, grant)
            if left:
                await self._limiter.give_back(grant, left)
        if going:
            await self._mark(going)
            GATED.labels("passed").inc(len(going))
            for entry, grant in going:
                _answer(entry, grant)

    async def _mark(self, going: list[tuple[_Entry, Grant]]) -> None:
        """Book before the act: from here on a crash makes these jobs uncertain (N41)."""
        marks: dict[int, dict[Any, Any]] = defaultdict(dict)  # redis-py's mapping is invariant
        for entry, grant in going:
            marks[entry.chunk_id][str(entry.job.id)] = f"{grant.at:.3f}"
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for chunk_id, mapping in marks.items():
                    pipe.hset(keys.in_data(chunk_id), mapping=mapping)
                    if chunk_id not in self._marked:
                        self._marked.add(chunk_id)
                        pipe.expire(keys.in_data(chunk_id), MARK_KEEP)
                await pipe.execute()
        except RedisError as error:
            # The reconciler counts every taken job as marked when it cannot read the marks.
            log.warning("mails not marked", error=type(error).__name__, mails=len(going))


def _answer(entry: _Entry, said: Grant | Refusal) -> None:
    if not entry.said.done():
        entry.said.set_result(said)
