"""Open connections, shared by all chunks of a process, and never more per source and site than allowed.

A connection is reused only for an equal :class:`~workers.delivery.connection.Dial`: same source, hop,
TLS policy and login. Idle ones are closed with QUIT after the provider's idle time, and make room when
the same source needs another host of the same site.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import insort
from collections import defaultdict
from collections.abc import Callable

from workers.delivery.connection import Connection, Dial

QUIT_WAIT = 2.0  # real seconds a goodbye may take

Place = tuple[str, str]  # source name, site
OnChange = Callable[[str, str, int], None]


class Pool:
    """Connections of one event loop. Every place taken is left exactly once. Who waits for one is served in the
    order they came: none stands there for ever because others come."""

    def __init__(self, on_change: OnChange | None = None) -> None:
        self._idle: dict[Dial, list[Connection]] = defaultdict(list)
        self._sites: dict[int, Place] = {}  # id of an idle connection -> its place
        self._open: dict[Place, int] = defaultdict(int)
        self._tickets = itertools.count()
        # ticket and turn, by ticket; and how many were called and have not looked yet
        self._waiting: dict[Place, list[tuple[int, asyncio.Future[None]]]] = defaultdict(list)
        self._called: dict[Place, int] = defaultdict(int)
        self._on_change = on_change
        self._goodbyes: set[asyncio.Task[None]] = set()

    def open(self, source: str, site: str) -> int:
        """Connections held now, idle ones included."""
        return self._open.get((source, site), 0)

    def held(self) -> dict[Place, int]:
        """All of them: (source, site) -> connections."""
        return {place: count for place, count in self._open.items() if count}

    def take(self, dial: Dial) -> Connection | None:
        """An idle connection, ready for a mail; its place stays taken."""
        while kept := self._idle.get(dial):
            connection = kept[-1]
            place = self._forget(dial, connection)
            if connection.protocol.clean:
                return connection
            self.discard(place, connection)
        return None

    def free(self, place: Place, limit: int, dial: Dial) -> tuple[int, int]:
        """Connections for a dial that nobody waits for: idle ones, and those that may be opened."""
        if self._awaited(place):
            return 0, 0
        return len(self._idle.get(dial, ())), max(0, limit - self._open.get(place, 0))

    async def enter(self, place: Place, limit: Callable[[], int], dial: Dial) -> Connection | None:
        """An idle connection for ``dial``, or None and a place for one about to be opened; waits where
        ``limit()`` are open and none is idle, and behind those who wait already."""
        ticket: int | None = None
        while True:
            if ticket is not None or not self._awaited(place):
                kept = self.take(dial)
                if kept is not None:
                    return kept
                if self._open.get(place, 0) < limit():
                    self._count(place, 1)
                    return None
                if self._evict(place):
                    continue
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            came = ticket is None
            ticket = next(self._tickets) if ticket is None else ticket
            insort(self._waiting[place], (ticket, turn))
            if came:
                self.call(place, limit())  # so that nobody waits while something is free
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._looks(place)
                    self._call_next(place)  # our turn came as we left: the next one's
                raise
            self._looks(place)

    def leave(self, place: Place) -> None:
        """Give a place back: its connection is closed or was never opened."""
        self._count(place, -1)
        self._call_next(place)

    def put(self, place: Place, dial: Dial, connection: Connection, idle: float) -> None:
        """Keep a connection for ``idle`` seconds."""
        if not connection.protocol.clean or idle <= 0:
            self.discard(place, connection)
            return
        self._idle[dial].append(connection)
        self._sites[id(connection)] = place
        loop = asyncio.get_running_loop()
        connection.idle = loop.call_later(idle, self._expire, dial, connection)
        connection.protocol.on_lost = lambda: self._expire(dial, connection)
        self._call_next(place)  # somebody waiting may take this one, or evict it for another host

    def discard(self, place: Place, connection: Connection) -> None:
        """Close with QUIT in the background and leave the place when it is closed."""
        task = asyncio.get_running_loop().create_task(self._goodbye(place, connection))
        self._goodbyes.add(task)
        task.add_done_callback(self._goodbyes.discard)

    def call(self, place: Place, limit: int) -> bool:
        """Let in who waits, as far as connections are idle or fewer than ``limit`` are open, since the limit
        may have grown; whether there was somebody."""
        if place not in self._waiting:
            return False
        idle = sum(1 for of in self._sites.values() if of == place)
        spare = idle + limit - self._open.get(place, 0) - self._called.get(place, 0)
        called = [self._call_next(place) for _ in range(spare)]
        return any(called)

    def trim(self, place: Place, keep: int) -> None:
        """Close idle connections of a place until at most ``keep`` are open."""
        while self._open.get(place, 0) > keep and self._evict(place):
            pass

    async def close(self) -> None:
        """QUIT every idle connection and wait for the goodbyes."""
        for dial in list(self._idle):
            for connection in list(self._idle[dial]):
                self._expire(dial, connection)
        if self._goodbyes:
            await asyncio.gather(*self._goodbyes, return_exceptions=True)

    # --- inside -----------------------------------------------------------------------------
    async def _goodbye(self, place: Place, connection: Connection) -> None:
        try:
            await connection.quit(QUIT_WAIT)
        finally:
            self.leave(place)

    def _expire(self, dial: Dial, connection: Connection) -> None:
        if id(connection) in self._sites:
            self.discard(self._forget(dial, connection), connection)

    def _forget(self, dial: Dial, connection: Connection) -> Place:
        """Take a connection out of the idle books."""
        kept = self._idle[dial]
        kept[:] = [other for other in kept if other is not connection]
        if not kept:
            del self._idle[dial]
        if connection.idle is not None:
            connection.idle.cancel()
            connection.idle = None
        connection.protocol.on_lost = None
        return self._sites.pop(id(connection))

    def _evict(self, place: Place) -> bool:
        """Free a place by closing an idle connection of it at once."""
        for dial, kept in self._idle.items():
            for connection in kept:
                if self._sites[id(connection)] == place:
                    self._forget(dial, connection)
                    connection.say_goodbye()
                    self.leave(place)
                    return True
        return False

    def _count(self, place: Place, change: int) -> None:
        self._open[place] += change
        count = self._open[place]
        if not count:
            del self._open[place]
        if self._on_change is not None:
            self._on_change(*place, count)

    def _awaited(self, place: Place) -> bool:
        """Whether somebody waits for a connection, or was called and has not taken it yet."""
        return bool(self._called.get(place)) or any(
            not turn.done() for _, turn in self._waiting.get(place, ())
        )

    def _looks(self, place: Place) -> None:
        """Somebody who was called."""
        self._called[place] -= 1
        if not self._called[place]:
            del self._called[place]

    def _call_next(self, place: Place) -> bool:
        waiting = self._waiting.get(place)
        while waiting:
            _, turn = waiting.pop(0)
            if not turn.done():
                self._called[place] += 1
                turn.set_result(None)
                return True
        self._waiting.pop(place, None)
        return False
