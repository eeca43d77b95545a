"""The gate each mail passes right before its recipient is named: suppression and tokens; and the mark.

Suppression and tokens are asked for all mails of a chunk that share their limits (a :class:`Purse`), and
asked again when the answer is old. Whoever arrives in one turn of the loop, from whichever chunk,
shares the round trips. A mail that must wait longer than a worker may wait goes back with the exact time
and the layer that binds. One that begins is marked *in data*, one by one and no sooner, while its commands
are under way; its content waits for the mark.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from mailweir.contracts.ids import made_at
from mailweir.contracts.job import Job
from mailweir.contracts.lifecycle import State
from mailweir.contracts.route import SENT_BACK
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import DatabaseUnavailable
from mailweir.plumbing.wire import wire_of
from suppression.guard import Ask as Question
from suppression.guard import AsyncGuard
from workers.engine_purse import Entry, Purse, Refusal
from workers.marks import Booked, Marks
from workers.policy import tokens
from workers.throttle.types import Grant, Limiter

log = structlog.get_logger(__name__)

SHORT_WAIT = 0.25
"""Real seconds any mail may wait for its token; longer waits need one of the few places (below)."""
LONG_WAIT_SHARE = 0.1
"""Share of the slots in which a longer wait may happen."""
CLEARED_FOR = 0.4
"""Real seconds an answer of the suppression list holds: a bounce recorded now stops every RCPT later
than 1 s after (S60), of which the projection takes its part."""
ROUTER_LOOKS = 0.25
"""Real seconds after which the router has surely looked at a path anew; a job sent back before that meets
the same decision."""
BLIND_WAIT = 5.0
"""Real seconds a job stays away while neither Redis nor SQL can say whether it may go."""

_NEVER: tuple[float, str | None] = (-math.inf, None)

GATED = Counter("mailweir_gate_total", "Mails at the gate, by what was said.", ["said"])


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
        reroute: float,
    ) -> None:
        """``reroute``: setting ``worker.reroute``."""
        self._guard = guard
        self._limiter = limiter
        self._wire = wire_of(redis)
        self._clock = clock
        self._max_wait = max_wait
        self._reroute = reroute
        self._long = max(1, round(slots * LONG_WAIT_SHARE))
        self._long_waits: dict[int, int] = defaultdict(int)  # chunk -> mails of it that wait long
        self._arrived: list[Entry] = []
        self._flushing: asyncio.Task[None] | None = None
        self._passed = 0  # not in the metric yet
        self._marks = Marks(self._wire, clock)
        self._returning: set[asyncio.Task[None]] = set()

    def at_once(self, job: Job, purse: Purse) -> bool:
        """Let a mail go now, where its chunk was asked about lately and holds a token; else :meth:`enter`
        knows."""
        if purse.left <= 0:
            return False
        asked, reason = purse.cleared.get(job.id, _NEVER)
        if reason is not None or asked <= time.monotonic() - CLEARED_FOR:
            return False
        if self._clock.now() > purse.good_until:
            return False
        purse.left -= 1
        purse.jobs.pop(job.id, None)
        self._passed += 1
        return True

    async def enter(self, job: Job, purse: Purse, may_wait: Callable[[], bool]) -> Refusal | None:
        """None: go now. Waits for a token as long as allowed; ``may_wait`` is asked before each wait."""
        end = time.monotonic() + self._max_wait
        waited, paid = False, None
        while True:
            said: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
            entry = Entry(job, purse, said, waited, paid)
            waited = True
            self._arrived.append(entry)
            if self._flushing is None:
                self._flushing = asyncio.create_task(self._flush())
            refusal = await entry.said
            if refusal is not None:
                purse.jobs.pop(job.id, None)
                return refusal
            if not entry.place:
                return None
            paid = entry.paid
            wait = max(0.0, self._clock.real(entry.place - self._clock.now()))
            late = time.monotonic() + wait > end
            if late or not may_wait() or not await self._wait(purse, wait):
                purse.jobs.pop(job.id, None)
                if paid is not None:
                    self._give_back(paid, 1)
                return await self._away(job, purse, entry.place)

    async def _away(self, job: Job, purse: Purse, place: float) -> Refusal:
        """A job that cannot wait here. Its path was shut after it was routed: it is routed anew at once,
        another way may be open (S35), and before what is due later than it. Else it is held until its
        place, as is one that was routed this way though the router could know: so nothing goes back
        and forth."""
        grant, clock = purse.grant, self._clock
        if grant is not None and grant.shut is not None and not grant.local:
            routed = clock.at(made_at(purse.chunk_id))
            if routed < grant.shut + self._reroute * clock.rate:
                GATED.labels("rerouted").inc()
                known = ROUTER_LOOKS - clock.real(clock.now() - grant.shut)
                await asyncio.sleep(max(0.0, min(known, ROUTER_LOOKS)))
                path = f"{purse.ask.source} to {purse.ask.provider}"
                due = max(job.accepted_at, job.meta.send_at or 0.0)
                return Refusal(State.DUE, due, f"path shut: {path}")
        GATED.labels("held").inc()
        return Refusal(State.HELD, place, f"{SENT_BACK}{purse.layer or 'its turn'}")

    def mark(self, chunk_id: int, job_id: int) -> Booked:
        """A mail begins: from here on a crash makes it uncertain (N41)."""
        return self._marks.add(chunk_id, job_id)

    def ended(self, chunk_id: int, job_id: int) -> None:
        """A mail that began has its end."""
        self._marks.ended(chunk_id, job_id)

    async def admit(self, purse: Purse, may_wait: Callable[[], bool]) -> bool:
        """Whether anything may go: asked before a connection is opened, so that a path that must not be
        tried is not even dialled, and a half-open one by its one probe only. Where a rate alone binds
        it waits for the first token, as long as a mail may. Marks nothing."""
        end = time.monotonic() + self._max_wait
        while True:
            if not purse.left or self._clock.now() > purse.good_until:
                await self._fill({purse: (1, 0)})
            grant = purse.grant
            if purse.left > 0 or grant is None or grant.shut is not None:
                return purse.left > 0
            ahead = [*list(purse.promised)[:1], *list(purse.places)[:1]]
            place = min(ahead) if ahead else grant.available
            wait = max(0.0, self._clock.real(place - self._clock.now()))
            late = time.monotonic() + wait > end
            if late or not may_wait() or not await self._wait(purse, wait):
                return False

    async def shut(self, purse: Purse) -> bool:
        """Whether the path may not be tried: asked again before a dial that was long in coming. What was
        granted goes back then."""
        if purse.grant is not None and purse.grant.probe:
            return False
        [grant] = await self._limiter.take([(purse.ask, 0)])
        if grant.shut is None:
            return False
        await self._return(purse)
        purse.grant = grant
        return True

    async def leave(self, chunk_id: int, purses: Iterable[Purse]) -> None:
        """The chunk is done: what it did not use goes back."""
        GATED.labels("passed").inc(self._passed)
        self._passed = 0
        self._marks.forget(chunk_id)
        for purse in purses:
            await self._return(purse)

    async def _return(self, purse: Purse) -> None:
        left, purse.left = purse.left + len(purse.promised), 0
        purse.promised.clear()
        if left and purse.grant is not None:
            await self._limiter.give_back(purse.grant, left)

    async def _wait(self, purse: Purse, seconds: float) -> bool:
        """Wait, if waiting is allowed; whether it was."""
        if seconds > purse.patience.left:
            return False
        if seconds <= SHORT_WAIT:
            with purse.patience.waiting():
                await asyncio.sleep(seconds)
            return True
        waits, chunk_id = self._long_waits, purse.chunk_id
        if chunk_id not in waits and len(waits) >= self._long:
            return False
        waits[chunk_id] += 1
        try:
            with purse.patience.waiting():
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
                    entry.answer(why)
            except Exception as error:  # each mail's own handler decides what it means for it
                for entry in batch:
                    if not entry.said.done():
                        entry.said.set_exception(error)
        self._flushing = None

    async def _serve(self, batch: list[Entry]) -> None:
        groups: dict[Purse, list[Entry]] = defaultdict(list)
        for entry in batch:
            groups[entry.purse].append(entry)
        now = self._clock.now()
        for entry in batch:
            if entry.paid is not None and now > entry.paid.at + tokens.HOLD_MAX:
                self._give_back(entry.paid, 1)  # it came too late to its token
                entry.paid = None
        asking = {p: [e for e in some if e.paid is None] for p, some in groups.items()}
        askers = {p: (len(some), sum(e.waited for e in some)) for p, some in asking.items()}
        fresh = time.monotonic() - CLEARED_FOR
        stale = [e for e in batch if e.purse.cleared.get(e.job.id, _NEVER)[0] <= fresh]
        short = any(purse.short(*some, now) for purse, some in askers.items())
        if stale and short:
            await asyncio.gather(self._clear(stale, groups), self._fill(askers))
        elif stale:
            await self._clear(stale, groups)
        elif short:
            await self._fill(askers)
        going: list[Entry] = []
        for purse, some in groups.items():
            for entry in sorted(some, key=lambda e: not e.waited):
                if reason := purse.cleared[entry.job.id][1]:
                    GATED.labels("suppressed").inc()
                    if entry.paid is not None:
                        self._give_back(entry.paid, 1)
                    entry.answer(Refusal(State.REFUSED, None, f"suppressed: {reason}"))
                elif entry.paid is not None:
                    going.append(entry)
                elif purse.left:
                    purse.left -= 1
                    going.append(entry)
                elif purse.promised and purse.grant is not None:
                    entry.place, entry.paid = purse.promised.popleft(), purse.grant
                    entry.answer(None)
                else:
                    # none: the tokens ran out while the list was asked, so it asks again at once
                    entry.place = purse.places.popleft() if purse.places else self._clock.now()
                    entry.answer(None)
        self._passed += len(going)
        for entry in going:
            entry.purse.jobs.pop(entry.job.id, None)
            entry.answer(None)

    async def _clear(self, stale: list[Entry], purses: Iterable[Purse]) -> None:
        """Ask the suppression list for these mails, and for everybody still to come of their chunks."""
        now = time.monotonic()
        asked = [(purse, job) for purse in purses for job in purse.jobs.values()]
        # a mail that begins anew after a broken connection is no longer among them
        asked += [(e.purse, e.job) for e in stale if e.job.id not in e.purse.jobs]
        reasons = await self._guard.check(
            [
                Question(job.recipient, job.tenant, job.bucket, job.mail_from, job.recipient_key)
                for _, job in asked
            ]
        )
        for (purse, job), reason in zip(asked, reasons, strict=True):
            purse.cleared[job.id] = (now, reason)

    async def _fill(self, askers: dict[Purse, tuple[int, int]]) -> None:
        """Take tokens for purses that hold too few, in one call; old ones go back. ``askers``: mails that
        arrived, and those among them that have waited."""
        now = self._clock.now()
        wanted: list[tuple[Purse, int]] = []
        waiting: list[int] = []
        # who was sent back before asks first
        for purse, (arrived, waited) in sorted(askers.items(), key=lambda a: not a[0].back):
            if (purse.left or purse.promised) and now > purse.good_until:
                await self._return(purse)
            if count := purse.asks(arrived, waited, now):
                wanted.append((purse, count))
                waiting.append(min(count, arrived))
        asks = [(purse.ask, count) for purse, count in wanted]
        grants = await self._limiter.take(asks, waiting, [purse.back for purse, _ in wanted])
        for (purse, _), grant in zip(wanted, grants, strict=True):
            if purse.left or purse.promised:
                # tokens of two grants: the older one's time binds both
                purse.left += grant.granted
            else:
                purse.left = grant.granted
                # a probe has a lease of its own: it is held until the path has answered, or did not
                purse.good_until = math.inf if grant.probe else grant.at + tokens.HOLD_MAX
            purse.promised.extend(grant.promised)
            purse.grant = grant
            purse.layer = grant.layer or purse.layer
            purse.places = deque(sorted((*purse.places, *grant.places)))
            if (grant.granted or grant.promised) and not grant.probe:
                delay = self._clock.real(tokens.HOLD_MAX)
                asyncio.get_running_loop().call_later(delay, self._expire, purse, grant)

    def _expire(self, purse: Purse, grant: Grant) -> None:
        """Nobody used the rest of a grant in time."""
        if (purse.left or purse.promised) and purse.grant is grant:
            self._later(self._return(purse))

    def _give_back(self, grant: Grant, count: int) -> None:
        """Tokens of a grant nobody will use."""
        self._later(self._limiter.give_back(grant, count))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)
