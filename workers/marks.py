"""Marks *in data*: what a crash makes uncertain (N41). Booked in Redis before a mail's content goes out.

A mail is marked while its commands are under way; what begins meanwhile on other connections shares the
round trip. The writer takes a chunk's marks away when the chunk is closed (``workers.writer``); the
reconciler reads those of a chunk whose worker died.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

import structlog
from redis.exceptions import RedisError

from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.wire import Command, Wire

log = structlog.get_logger(__name__)

KEEP = 2 * 86400
"""Real seconds a chunk's marks are kept at most."""
COMPANY = 0.002
"""Real seconds a mark waits for others, unless its mail's content could go before."""


class Booked:
    """Marks that are booked together. Never fails: where marks cannot be read, the reconciler counts every
    taken job as marked."""

    __slots__ = ("_marks", "_waiting", "done")

    def __init__(self, marks: Marks) -> None:
        self._marks: Marks | None = marks
        self._waiting: list[asyncio.Future[None]] = []
        self.done = False

    async def wait(self) -> None:
        """Until they are booked. Who asks has no more time for company."""
        if self._marks is not None:
            self._marks.send()
        if self.done:
            return
        said: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(said)
        await said

    def sent(self) -> None:
        """On their way: who waits need not ask for it."""
        self._marks = None

    def settle(self) -> None:
        """They are booked."""
        self.done = True
        for said in self._waiting:
            if not said.done():
                said.set_result(None)


class Marks:
    """The marks of a process; belongs to its event loop."""

    def __init__(self, wire: Wire, clock: Clock) -> None:
        self._wire = wire
        self._clock = clock
        self._known: set[int] = set()  # chunks whose marks have an expiry
        self._new: dict[int, list[int | str]] = defaultdict(
            list
        )  # chunk -> job, time, job, time ...
        self._booked: Booked | None = None  # of the new ones
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()

    def add(self, chunk_id: int, job_id: int) -> Booked:
        """Mark a job of a chunk."""
        self._new[chunk_id] += (job_id, f"{self._clock.now():.3f}")
        if self._booked is None:
            self._booked = Booked(self)
            self._timer = asyncio.get_running_loop().call_later(COMPANY, self.send)
        return self._booked

    def send(self) -> None:
        """Book what is new."""
        booked, self._booked = self._booked, None
        if booked is None:
            return
        new, self._new = self._new, defaultdict(list)
        if self._timer is not None:
            self._timer.cancel()
        booked.sent()
        task = asyncio.get_running_loop().create_task(self._send(new, booked))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def forget(self, chunk_id: int) -> None:
        """The chunk is done."""
        self._known.discard(chunk_id)

    async def _send(self, new: dict[int, list[int | str]], booked: Booked) -> None:
        first = new.keys() - self._known
        commands: list[Command] = [("HSET", keys.in_data(c), *marks) for c, marks in new.items()]
        commands += [("EXPIRE", keys.in_data(c), KEEP) for c in first]
        try:
            await self._wire.run(*commands)
            self._known |= first
        except RedisError as error:
            log.warning("mails not marked", error=type(error).__name__, chunks=len(new))
        finally:
            booked.settle()
