"""Which jobs run and which wait for a slot. Everything here runs in the loop thread."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial

from workers.pool_job import PoolJob


class Slots:
    """A changing number of slots; jobs start in the order they came."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[PoolJob] = deque()
        self._running: dict[int, PoolJob] = {}
        self._closed = False

    @property
    def running_count(self) -> int:
        """Jobs in a slot (also read by other threads, for display)."""
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        """Jobs without a slot (also read by other threads, for display)."""
        return len(self._waiting)

    def submit(self, job: PoolJob) -> None:
        """Start the job, or let it wait; after a stop has begun it is dropped."""
        if self._closed:
            return
        self._waiting.append(job)
        self._fill()

    def resize(self, limit: int) -> None:
        """Change the number of slots."""
        self._limit = limit
        self._fill()

    def cancel(self, token: int) -> None:
        """Cancel a running job by its token; an unknown one has ended."""
        job = self._running.get(token)
        if job is not None:
            job.stop()

    async def drain(self, seconds: float, grace: float) -> int:
        """Drop what waits, wait ``seconds`` for what runs, cancel the rest and give it ``grace``.

        Returns how many were cancelled.
        """
        self._closed = True
        self._waiting.clear()
        tasks = [job.task for job in self._running.values() if job.task is not None]
        if tasks and seconds > 0:
            await asyncio.wait(tasks, timeout=seconds)
        late = list(self._running.values())
        for job in late:
            job.cancel()
        left = [job.task for job in late if job.task is not None]
        if left:
            await asyncio.wait(left, timeout=grace)
        return len(late)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._limit and not self._closed:
            job = self._waiting.popleft()
            self._running[job.token] = job
            job.task = asyncio.get_running_loop().create_task(job.run())
            job.task.add_done_callback(partial(self._free, job.token))

    def _free(self, token: int, _task: asyncio.Task[None]) -> None:
        del self._running[token]
        self._fill()
