"""Celery's asyncio worker pool: tasks are ``async def``, all on one event loop in a thread of its own.

Celery 5.7 has no asyncio pool; this one keeps the contract of ``celery.concurrency.base.BasePool``
(warm and cold stop, revoke, grow and shrink, soft and hard time limits). Load it with
``CELERY_CUSTOM_WORKER_POOL=workers.pool:TaskPool celery -A ... worker -P custom``.

The main thread runs kombu's hub; callbacks into Celery's requests come from the loop thread and end in
``hub.call_soon``, which kombu >= 5.7 makes safe and prompt. What lives as long as the loop is built in
hooks (:mod:`workers.pool_hooks`): built before the first task, closed within the drain deadline.
"""

from __future__ import annotations

import faulthandler
import itertools
import sys
from typing import Any

import structlog
from celery import signals
from celery.concurrency.base import BasePool
from celery.worker import state

from mailweir.plumbing.beat import EVERY, Beat
from mailweir.plumbing.celery import settings_of
from workers.pool_hooks import HOOKS, Hooks, on_drain, on_loop_start, on_stopping
from workers.pool_job import PoolJob, current_request
from workers.pool_loop import LoopThread
from workers.pool_slots import Slots

__all__ = ["TaskPool", "current_request", "on_drain", "on_loop_start", "on_stopping"]

log = structlog.get_logger(__name__)

CLOSING = 5.0
"""Real seconds of the drain deadline kept for cancelled tasks and drain hooks."""
COLD = 3.0
"""Real seconds a cold stop gives cancelled tasks and the drain hooks together."""
OVERDUE = 3.0
"""Real seconds beyond its deadline after which a stop is ended by force, whatever hangs: threads in a
database call, a broker that does not answer, code that swallows its cancellation."""
EX_FAILURE = 1


class TaskPool(BasePool):  # type: ignore[misc]  # Celery ships no types
    """The pool Celery loads; one per worker process, one asyncio task per message."""

    signal_safe = False
    is_green = False
    task_join_will_block = False
    body_can_be_buffer = True
    uses_semaphore = False

    hooks: Hooks = HOOKS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._drain = settings_of(self.app).worker.drain
        self._tokens = itertools.count(1)
        self._slots = Slots(self.limit)
        self._loop: LoopThread | None = None
        self._beat = Beat()
        self._overdue_armed = False

    # --- life -------------------------------------------------------------------------------

    def on_start(self) -> None:
        """Start the loop thread and run the start hooks there; what they raise ends the worker."""
        signals.worker_shutting_down.connect(self._shutting_down)
        self._loop = LoopThread("mailweir-tasks", on_death=_end_worker)
        self._loop.start()
        self._loop.call(self.hooks.start())

    def did_start_ok(self) -> bool:
        """Whether the loop runs (asked once by Celery)."""
        return self._loop is not None and self._loop.alive

    def on_close(self) -> None:
        """A stop begins: tell those who start work to start no more."""
        self._shutting_down()
        if self._loop is not None:
            self._loop.soon(self.hooks.stopping)

    def _shutting_down(self, how: str = "Warm", **_: object) -> None:
        """The signal came. From here the process ends within its deadline and :data:`OVERDUE`.

        The watch is a thread of the interpreter's own that needs neither the loop nor the GIL; it
        writes every thread's stack to the log and exits with 1. What was not acknowledged goes back,
        leases run out, the reconciler settles what was being sent."""
        if not self._overdue_armed:
            self._overdue_armed = True
            seconds = (self._drain if how == "Warm" else COLD) + OVERDUE
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)

    def on_stop(self) -> None:
        """Warm: drop what has not started, let the rest end, cancel what is late, close."""
        self._stop(max(0.0, self._drain - CLOSING), min(CLOSING, self._drain))

    def on_terminate(self) -> None:
        """Cold: cancel everything now; unacknowledged messages go back to their queue."""
        self._stop(0.0, COLD)

    def _stop(self, drain: float, closing: float) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        if loop.alive:
            try:
                late = loop.call(self._slots.drain(drain, closing / 2))
                if late:
                    log.warning("tasks_cancelled_at_stop", tasks=late)
                loop.call(self.hooks.drain(closing / 2))
            except Exception:  # a failing hook must not keep the process from ending
                log.exception("pool_stop_failed")
        loop.stop()

    def register_with_event_loop(self, hub: Any) -> None:
        """Beat once a second, through both threads: neither the hub nor the loop may stand still."""
        hub.call_repeatedly(EVERY, self._touch)

    def _touch(self) -> None:
        if self._loop is not None:
            self._loop.soon(self._beat.touch)

    # --- tasks ------------------------------------------------------------------------------

    def on_apply(
        self,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        callback: Any = None,
        accept_callback: Any = None,
        timeout_callback: Any = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> PoolJob:
        """Queue one request; it starts when a slot is free. The result is kept by the pool."""
        job = PoolJob(
            token=next(self._tokens),
            app=self.app,
            target=target,
            args=args,
            callback=callback,
            accept_callback=accept_callback,
            timeout_callback=timeout_callback,
            soft=soft_timeout or self.options.get("soft_timeout"),
            hard=timeout or self.options.get("timeout"),
        )
        # Without a loop (a stop has begun) the message stays unacknowledged and goes back.
        if self._loop is not None:
            self._loop.soon(self._slots.submit, job)
        return job

    def terminate_job(self, pid: int, signal: object = None) -> None:
        """Cancel the task with this token, from any thread; the request has announced it already."""
        if self._loop is not None:
            self._loop.soon(self._slots.cancel, pid)

    # --- size -------------------------------------------------------------------------------

    def grow(self, n: int = 1) -> None:
        """``n`` slots more."""
        self._resize(self.limit + n)

    def shrink(self, n: int = 1) -> None:
        """``n`` slots fewer, at least one; running tasks end undisturbed."""
        self._resize(max(1, self.limit - n))

    def _resize(self, limit: int) -> None:
        self.limit = limit
        if self._loop is not None:
            self._loop.soon(self._slots.resize, limit)

    @property
    def num_processes(self) -> int:
        """Slots: what prefetch is counted in."""
        return int(self.limit)

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "running": self._slots.running_count,
            "waiting": self._slots.waiting_count,
            "timeouts": [self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0],
        }


def _end_worker(error: BaseException | None) -> None:
    """The loop thread ended by itself: nothing would run any more, so the worker must end."""
    log.critical("task_loop_died", error=repr(error))
    state.should_terminate = EX_FAILURE
