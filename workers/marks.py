"""Marks *in data*: what a crash makes uncertain (N41). Booked in Redis before a mail's content goes out.

A mail is marked while its commands are under way; what begins meanwhile on other connections shares the
round trip: marks are sent when all mails under way wait for theirs, or when the first is four milliseconds
old. The writer takes a chunk's marks away when the chunk is closed (``workers.writer``); the
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
COMPANY = 0.004
"""Real seconds a mark waits for others at most."""


class Booked:
    """Marks that are booked together. Never fails: where marks cannot be read, the reconciler counts every
    taken job as marked."""

    __slots__ = ("_marks", "_waiting", "done")

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._waiting: list[asyncio.Future[None]] = []
        self.done = False

    async def wait(self) -> None:
        """Until they are booked."""
        said: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(said)
        self._marks.waits(1)
        try:
            await said
        finally:
            self._marks.waits(-1)

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
        # what Redis did not take goes with the next ones, where its mail is still under way
        self._refused: list[tuple[int, list[int | str]]] = []
        self._booked: Booked | None = None  # of the new ones
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._under_way: dict[int, set[int]] = defaultdict(set)  # chunk -> jobs begun and not ended
        self._count = 0  # of these
        self._waiting = 0  # of these, who wait for their mark and nothing else

    def add(self, chunk_id: int, job_id: int) -> Booked:
        """Mark a job of a chunk: it is under way."""
        jobs = self._under_way[chunk_id]
        self._count -= len(jobs)
        jobs.add(job_id)
        self._count += len(jobs)
        self._new[chunk_id] += (job_id, f"{self._clock.now():.3f}")
        if self._booked is None:
            self._booked = Booked(self)
            self._timer = asyncio.get_running_loop().call_later(COMPANY, self._send)
        return self._booked

    def ended(self, chunk_id: int, job_id: int) -> None:
        """A job is no longer under way."""
        jobs = self._under_way.get(chunk_id)
        if jobs and job_id in jobs:
            jobs.remove(job_id)
            self._count -= 1
            self._look()

    def waits(self, change: int) -> None:
        """So many more mails wait for their mark."""
        self._waiting += change
        self._look()

    def forget(self, chunk_id: int) -> None:
        """The chunk is done."""
        self._known.discard(chunk_id)
        self._count -= len(self._under_way.pop(chunk_id, ()))

    def _look(self) -> None:
        """Where all wait nobody else can come."""
        if self._booked is not None and self._waiting >= self._count:
            self._send()

    def _send(self) -> None:
        booked, self._booked = self._booked, None
        new, self._new = self._new, defaultdict(list)
        if self._timer is not None:
            self._timer.cancel()
        if booked is None:
            return
        refused, self._refused = self._refused, []
        for chunk_id, marks in refused:
            jobs = self._under_way.get(chunk_id, ())
            for job, at in zip(marks[::2], marks[1::2], strict=True):
                if job in jobs:
                    new[chunk_id] += (job, at)
        task = asyncio.get_running_loop().create_task(self._book(new, booked))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _book(self, new: dict[int, list[int | str]], booked: Booked) -> None:
        first = new.keys() - self._known
        commands: list[Command] = [("HSET", keys.in_data(c), *marks) for c, marks in new.items()]
        commands += [("EXPIRE", keys.in_data(c), KEEP) for c in first]
        try:
            await self._wire.run(*commands)
            self._known |= first
        except RedisError as error:
            log.warning("mails not marked", error=type(error).__name__, chunks=len(new))
            self._refused += new.items()
        finally:
            booked.settle()
