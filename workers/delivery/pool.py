"""Open connections, shared by all chunks of a process, and never more per source and site than allowed.

A connection is reused only at its place and for an equal :class:`~workers.delivery.connection.Dial`: same
source, hop, TLS policy and login. Idle ones are closed with QUIT after the provider's idle time, and make
room when the same source needs another host of the same site.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from workers.delivery.connection import Connection, Dial

QUIT_WAIT = 2.0  # real seconds a goodbye may take

Place = tuple[str, str]  # source name, site
OnChange = Callable[[str, str, int], None]


class _Turn(NamedTuple):
    """Somebody who waits. Works of one place may differ in how many connections they know to be allowed."""

    ticket: int
    limit: Callable[[], int]
    dial: Dial
    said: asyncio.Future[None]


class Pool:
    """Connections of one event loop. Every place taken is left exactly once. Who waits for one is served in the
    order they came: nobody stands there for ever because others come."""

    def __init__(self, on_change: OnChange | None = None) -> None:
        self._idle: dict[Place, dict[Dial, list[Connection]]] = defaultdict(dict)
        self._open: dict[Place, int] = defaultdict(int)
        self._tickets = itertools.count()
        self._waiting: dict[Place, list[_Turn]] = defaultdict(list)  # by ticket
        self._called: dict[Place, int] = defaultdict(int)  # who have not looked yet
        self._on_change = on_change
        self._goodbyes: set[asyncio.Task[None]] = set()

    def open(self, source: str, site: str) -> int:
        """Connections held now, idle ones included."""
        return self._open.get((source, site), 0)

    def held(self) -> dict[Place, int]:
        """All of them: (source, site) -> connections."""
        return {place: count for place, count in self._open.items() if count}

    def take(self, place: Place, dial: Dial) -> Connection | None:
        """An idle connection, ready for a mail; its place stays taken."""
        while kept := self._kept(place, dial):
            connection = kept[-1]
            self._forget(place, dial, connection)
            if connection.protocol.clean:
                return connection
            self.discard(place, connection)
        return None

    def free(self, place: Place, limit: int, dial: Dial) -> tuple[int, int]:
        """Connections for a dial that nobody was called to: idle ones, and those that may be opened."""
        if self._called.get(place):
            return 0, 0
        return len(self._kept(place, dial)), max(0, limit - self._open.get(place, 0))

    async def enter(self, place: Place, limit: Callable[[], int], dial: Dial) -> Connection | None:
        """An idle connection for ``dial``, or None and a place for one about to be opened. Waits where
        ``limit()`` are open and none is idle, and behind those who wait already or were called and have not
        looked yet."""
        if not self._awaited(place):
            found, connection = self._find(place, limit(), dial)
            if found:
                return connection
        ticket = next(self._tickets)
        while True:
            turn = _Turn(ticket, limit, dial, asyncio.get_running_loop().create_future())
            insort(self._waiting[place], turn, key=lambda one: one.ticket)
            self.call(place)
            try:
                await turn.said
            except asyncio.CancelledError:
                if turn.said.done() and not turn.said.cancelled():
                    self._looked(place)
                self.call(place)  # what it was called to, or stood before, is the next one's
                raise
            self._looked(place)
            found, connection = self._find(place, limit(), dial)
            if found:
                self.call(place)
                return connection

    def leave(self, place: Place) -> None:
        """Give a place back: its connection is closed or was never opened."""
        self._count(place, -1)
        self.call(place)

    def put(self, place: Place, dial: Dial, connection: Connection, idle: float) -> None:
        """Keep a connection for ``idle`` seconds."""
        if not connection.protocol.clean or idle <= 0:
            self.discard(place, connection)
            return
        self._idle[place].setdefault(dial, []).append(connection)
        loop = asyncio.get_running_loop()
        connection.idle = loop.call_later(idle, self._expire, place, dial, connection)
        connection.protocol.on_lost = lambda: self._expire(place, dial, connection)
        self.call(place)

    def discard(self, place: Place, connection: Connection) -> None:
        """Close with QUIT in the background and leave the place when it is closed."""
        task = asyncio.get_running_loop().create_task(self._goodbye(place, connection))
        self._goodbyes.add(task)
        task.add_done_callback(self._goodbyes.discard)

    def call(self, place: Place) -> bool:
        """Let in those for whom something is free, in the order they came; whether there was somebody. To be
        asked again where a limit may have grown."""
        if place not in self._waiting:
            return False
        waiting, self._waiting[place] = self._waiting[place], []
        called = False
        for turn in waiting:
            if turn.said.done():
                continue
            if self._there_is_for(place, turn) > self._called.get(place, 0):
                self._called[place] += 1
                turn.said.set_result(None)
                called = True
            else:
                self._waiting[place].append(turn)
        if not self._waiting[place]:
            del self._waiting[place]
        return called

    def trim(self, place: Place, keep: int) -> None:
        """Close idle connections of a place until at most ``keep`` are open, and let in whom its limit lets."""
        while self._open.get(place, 0) > keep and self._evict(place):
            pass
        self.call(place)

    async def close(self) -> None:
        """QUIT every idle connection and wait for the goodbyes."""
        for place, dials in list(self._idle.items()):
            for dial, kept in list(dials.items()):
                for connection in list(kept):
                    self._expire(place, dial, connection)
        if self._goodbyes:
            await asyncio.gather(*self._goodbyes, return_exceptions=True)

    # --- inside -----------------------------------------------------------------------------
    def _find(self, place: Place, limit: int, dial: Dial) -> tuple[bool, Connection | None]:
        """Whether there is something, and the idle connection where it is one; else a place was taken."""
        kept = self.take(place, dial)
        if kept is not None:
            return True, kept
        if self._idle_ones(place) > self._open.get(place, 0) - limit:
            while self._open.get(place, 0) >= limit:
                self._evict(place)
            self._count(place, 1)
            return True, None
        return False, None

    def _there_is_for(self, place: Place, turn: _Turn) -> int:
        """How much :meth:`_find` can find for it."""
        same = len(self._kept(place, turn.dial))
        return max(same, self._idle_ones(place) + turn.limit() - self._open.get(place, 0))

    def _kept(self, place: Place, dial: Dial) -> Sequence[Connection]:
        """The idle ones of a dial."""
        return self._idle.get(place, {}).get(dial, ())

    def _idle_ones(self, place: Place) -> int:
        return sum(len(kept) for kept in self._idle.get(place, {}).values())

    def _awaited(self, place: Place) -> bool:
        """Whether somebody waits for a connection, or was called and has not looked yet."""
        return place in self._called or any(
            not turn.said.done() for turn in self._waiting.get(place, ())
        )

    def _looked(self, place: Place) -> None:
        """One of those called has looked."""
        self._called[place] -= 1
        if not self._called[place]:
            del self._called[place]

    async def _goodbye(self, place: Place, connection: Connection) -> None:
        try:
            await connection.quit(QUIT_WAIT)
        finally:
            self.leave(place)

    def _expire(self, place: Place, dial: Dial, connection: Connection) -> None:
        if any(other is connection for other in self._kept(place, dial)):
            self._forget(place, dial, connection)
            self.discard(place, connection)

    def _forget(self, place: Place, dial: Dial, connection: Connection) -> None:
        """Take a connection out of the idle books."""
        dials = self._idle[place]
        kept = dials[dial]
        kept[:] = [other for other in kept if other is not connection]
        if not kept:
            del dials[dial]
        if not dials:
            del self._idle[place]
        if connection.idle is not None:
            connection.idle.cancel()
            connection.idle = None
        connection.protocol.on_lost = None

    def _evict(self, place: Place) -> bool:
        """Free a place by closing an idle connection of it at once; nobody is called to it."""
        for dial, kept in self._idle.get(place, {}).items():
            connection = kept[0]
            self._forget(place, dial, connection)
            connection.say_goodbye()
            self._count(place, -1)
            return True
        return False

    def _count(self, place: Place, change: int) -> None:
        self._open[place] += change
        count = self._open[place]
        if not count:
            del self._open[place]
        if self._on_change is not None:
            self._on_change(*place, count)
