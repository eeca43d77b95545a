"""What lives as long as a worker's event loop: built before the first task, closed at the drain.

A module of tasks registers, at import::

    @on_loop_start
    async def build() -> None: ...          # raises: the worker does not start

    @on_stopping
    def stop_starting() -> None: ...        # a stop has begun: begin nothing new, give the rest back

    @on_drain
    async def close(seconds: float) -> None: ...   # tasks have ended; close within ``seconds``

All three run in the loop thread, drain hooks in reverse order of registration.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

Start = Callable[[], Awaitable[None]]
Stopping = Callable[[], None]
Drain = Callable[[float], Awaitable[None]]

_LEAST = (
    0.05  # real seconds even for the hook whose predecessors took all: with 0 it would not begin
)

log = structlog.get_logger(__name__)


class Hooks:
    """The hooks of one process."""

    def __init__(self) -> None:
        self._start: list[Start] = []
        self._stopping: list[Stopping] = []
        self._drain: list[Drain] = []
        self._stop_told = False

    def on_loop_start(self, hook: Start) -> Start:
        """Register an async function to run before the first task."""
        self._start.append(hook)
        return hook

    def on_stopping(self, hook: Stopping) -> Stopping:
        """Register a function to call when a stop begins."""
        self._stopping.append(hook)
        return hook

    def on_drain(self, hook: Drain) -> Drain:
        """Register an async function to run after the last task; it gets the seconds it has."""
        self._drain.append(hook)
        return hook

    async def start(self) -> None:
        """Run the start hooks in order; the first error ends it."""
        for hook in self._start:
            await hook()

    def stopping(self) -> None:
        """Tell once that a stop has begun."""
        if self._stop_told:
            return
        self._stop_told = True
        for hook in self._stopping:
            try:
                hook()
            except Exception:  # the others must hear of the stop as well
                log.exception("stopping_hook_failed")

    async def drain(self, seconds: float) -> None:
        """Run the drain hooks, newest first, all within ``seconds``; errors are logged."""
        self.stopping()
        end = time.monotonic() + seconds
        for hook in reversed(self._drain):
            left = max(_LEAST, end - time.monotonic())
            try:
                await asyncio.wait_for(hook(left), left)
            except Exception:  # the others must be closed as well
                log.exception("drain_hook_failed")


HOOKS = Hooks()
"""The hooks of this process."""

on_loop_start = HOOKS.on_loop_start
on_stopping = HOOKS.on_stopping
on_drain = HOOKS.on_drain
