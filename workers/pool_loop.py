"""A thread that runs an event loop (uvloop where there is one), called from other threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

T = TypeVar("T")


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's loop, or asyncio's where uvloop is not built."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class LoopDied(RuntimeError):
    """The loop thread has ended while somebody waited for it."""


class LoopThread:
    """One loop, one thread. ``on_death`` is called there when the loop ends without ``stop``."""

    def __init__(self, name: str, on_death: Callable[[BaseException | None], None]) -> None:
        self._on_death = on_death
        self._loop = new_loop()
        self._running = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread and wait until its loop runs."""
        self._thread.start()
        self._running.wait()

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call ``function`` in the loop; without effect once the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # closed: those who wait for work to end have been told
            if self.alive:
                raise

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` in the loop and return its result here. Raises :class:`LoopDied`."""
        if not self.alive:
            work.close()
            raise LoopDied("the task loop has ended")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while True:
            try:
                return future.result(timeout=0.5)
            except CancelledError:  # by the loop, at its end
                raise LoopDied("the task loop has ended") from None
            except TimeoutError:
                if future.done():
                    return future.result()
                if not self.alive:
                    raise LoopDied("the task loop has ended") from None

    def stop(self) -> None:
        """Stop the loop and join the thread; what is still running there is cancelled."""
        self._stopping = True
        self.soon(self._loop.stop)
        self._thread.join(timeout=10)

    def _main(self) -> None:
        error: BaseException | None = None
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(self._running.set)
        try:
            self._loop.run_forever()
            self._cancel_rest()
        except BaseException as caught:  # reported below, whatever it is: the loop is gone
            error = caught
        finally:
            self._running.set()
            self._loop.close()
            if not self._stopping:
                self._on_death(error)

    def _cancel_rest(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
