"""How many connections this worker may have open, per source and site: leases over all workers (S33).

A worker opens no connection beyond its leases, which live in Redis (``connections.lua``) and are renewed
every second. It asks for its part of the cap first and grows while nobody else waits, but for a few that
are kept free: a worker that comes to the place has one at once. When somebody waits for its part, it
shrinks: connections that become idle are closed and their leases given back. A lease not
renewed in time counts for nothing, here (``allowed``) as there. While Redis is away, each worker may
open its part of the cap, 1/N; the parts add up to the cap. Within all that a place starts slowly and
earns its connections (``workers.policy.concurrency``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mailweir.plumbing import keys
from mailweir.plumbing.wire import Command, wire_of
from workers.policy import concurrency

log = structlog.get_logger(__name__)

LEASE = 10.0
"""Real seconds a lease lasts: as long as a silent worker counts as alive."""
POLL = 0.1
"""Real seconds between two asks of a worker that holds no lease at all."""
RETRY = 1.0
"""Real seconds until a lost Redis is asked again."""
REFUSED = Counter("mailweir_connections_refused_total", "Waits for a connection lease in vain.")

Place = tuple[str, str]  # source, site


class Claim(NamedTuple):
    """What a worker asks for one place."""

    source: str
    site: str
    want: int  # leases to hold from now on; 0: none
    cap: int  # of all workers
    part: int  # of the cap: with less than it wants and less than this, a worker is wanting


class Held(NamedTuple):
    """The answer."""

    leases: int
    wanting: int  # other workers that wait for their part


class LeaseBook(Protocol):
    """The seam: Redis, and its twin in the contract tests."""

    async def claim(self, worker: str, claims: Sequence[Claim], seconds: float) -> list[Held]:
        """Hold so many leases of each place from now on, for so many real seconds."""
        ...


class RedisLeases:
    """The book in Redis: one script call per place, one round trip for all."""

    def __init__(self, redis: Redis) -> None:
        self._wire = wire_of(redis)
        self._text = Path(__file__).with_name("connections.lua").read_text()

    async def claim(self, worker: str, claims: Sequence[Claim], seconds: float) -> list[Held]:
        """See :class:`LeaseBook`."""
        commands: list[Command] = []
        for source, site, want, cap, part in claims:
            name = keys.connection_leases(source, site)
            # the whole text: a restarted server knows no script, and this call is rare
            script = ("EVAL", self._text, 2, name, keys.connection_wanting(source, site))
            commands.append((*script, worker, want, cap, repr(seconds), part))
        return [
            Held(int(leases), int(wanting)) for leases, wanting in await self._wire.run(*commands)
        ]


@dataclass(slots=True)
class _Place:
    cap: int = 0
    open: int = 0  # connections, idle ones included
    wanted: int = 0  # by the conversations under way
    target: int = 0  # what we ask for at most
    held: int = 0
    until: float = 0.0  # real monotonic time the leases end
    wanting: int = 0
    earned: float = concurrency.START


class Connections:
    """One per process; belongs to its event loop.

    ``part(cap)``: this worker's part of a cap among the workers alive."""

    def __init__(
        self,
        book: LeaseBook,
        worker: str,
        part: Callable[[int], int],
        now: Callable[[], float] = time.monotonic,
        lease: float = LEASE,
    ) -> None:
        self._lease = lease
        self._book = book
        self._worker = worker
        self._part = part
        self._now = now
        self._places: dict[Place, _Place] = {}
        self._asked: dict[Place, asyncio.Future[None]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # answers are believed in the order of the questions
        self._again = 0.0  # a lost Redis is not asked before

    def changed(self, source: str, site: str, count: int) -> None:
        """The transport says how many connections are open now."""
        place = self._places.setdefault((source, site), _Place())
        closed, place.open = count < place.open, count
        if closed and place.wanting and count < place.held:
            # somebody waits for this lease: not until the next renewal
            self._question((source, site))

    def allowed(self, source: str, site: str) -> int:
        """Connections that may be open now."""
        place = self._places.get((source, site))
        if place is None or self._now() > place.until:
            return 0
        return min(place.held, place.target, int(place.earned))

    def told(self, source: str, site: str, taken: bool) -> None:
        """A mail was taken, or failed for the host's sake."""
        place = self._places.get((source, site))
        if place is not None and (not taken or place.earned < place.cap):
            place.earned = concurrency.after(place.earned, place.cap, taken=taken)

    @asynccontextmanager
    async def using(
        self, source: str, site: str, want: int, cap: int, wait: float, go_on: Callable[[], bool]
    ) -> AsyncIterator[int]:
        """A conversation that would use ``want`` connections; yields how many it may (0: none came
        within ``wait`` seconds, or ``go_on`` said no)."""
        key = (source, site)
        place = self._places.setdefault(key, _Place())
        place.cap = cap
        place.wanted += want
        try:
            end = self._now() + wait
            if self.allowed(*key) < min(place.wanted, self._goal(place)):
                await self._ask(key)
            while not self.allowed(*key) and self._now() < end and go_on():
                await asyncio.sleep(POLL)
                await self._ask(key)
            allowed = self.allowed(*key)
            if not allowed:
                REFUSED.inc()
            yield min(want, allowed)
        finally:
            place.wanted -= want

    async def renew(self, trim: Callable[[str, str, int], None]) -> None:
        """Once a second: renew what is used, give back what is not, grow or make room.

        ``trim(source, site, keep)`` closes idle connections beyond ``keep``."""
        for (source, site), place in list(self._places.items()):
            part = max(1, self._part(place.cap))
            place.target = concurrency.aim(
                place.target, place.wanted, place.cap, part, place.wanting
            )
            trim(source, site, place.target)
        await self._claim(list(self._places))
        for key, place in list(self._places.items()):
            if not (place.held or place.open or place.wanted):
                del self._places[key]

    async def release(self) -> None:
        """Give everything back: the worker ends and its connections are closed."""
        for place in self._places.values():
            place.wanted = place.open = 0
        await self._claim(list(self._places))

    # --- inside -----------------------------------------------------------------------------
    def _goal(self, place: _Place) -> int:
        if not place.target:
            place.target = max(1, self._part(place.cap))
        place.target = min(place.target, place.cap)
        return min(place.target, int(place.earned))

    async def _ask(self, key: Place) -> None:
        """Claim a place; whoever asks in one turn of the loop shares the round trip."""
        await asyncio.shield(self._question(key))

    def _question(self, key: Place) -> asyncio.Future[None]:
        answer = self._asked.get(key)
        if answer is None:
            answer = self._asked[key] = asyncio.get_running_loop().create_future()
        if self._asking is None:
            self._asking = asyncio.create_task(self._answer())
        return answer

    async def _answer(self) -> None:
        try:
            await asyncio.sleep(0)  # the rest of this turn
            while self._asked:
                asked, self._asked = self._asked, {}
                try:
                    await self._claim(list(asked))
                finally:
                    for answer in asked.values():
                        if not answer.done():
                            answer.set_result(None)
        finally:
            self._asking = None

    async def _claim(self, names: Sequence[Place]) -> None:
        async with self._turn:
            await self._claim_in_turn([name for name in names if name in self._places])

    async def _claim_in_turn(self, names: Sequence[Place]) -> None:
        claims = []
        for name in names:
            place = self._places[name]
            # a lease stays as long as its connection is open, whatever we aim at
            want = max(place.open, min(place.wanted, self._goal(place)))
            cap = place.cap or place.open
            claims.append(Claim(*name, want, cap, max(1, self._part(cap))))
        if not claims:
            return
        asked = self._now()
        if asked < self._again:
            self._alone(names)
            return
        try:
            answers = await self._book.claim(self._worker, claims, self._lease)
        except (RedisError, OSError) as error:
            if not self._again:
                log.warning("connection leases lost: 1/N", error=type(error).__name__)
            self._again = self._now() + RETRY
            self._alone(names)
            return
        self._again = 0.0
        for name, (held, wanting) in zip(names, answers, strict=True):
            place = self._places[name]
            place.held, place.wanting, place.until = held, wanting, asked + self._lease

    def _alone(self, names: Sequence[Place]) -> None:
        for name in names:
            place = self._places[name]
            place.held = place.target = self._part(place.cap)
            place.until = self._now() + self._lease
