"""Several loops in one process: each in a thread; the process ends when one of them dies.

A loop that dies must not leave the others running as if nothing had happened: the supervisor then starts
the whole process again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import structlog

from mailweir.plumbing.beat import Beat

log = structlog.get_logger(__name__)

LOOK_EVERY = 0.2  # real seconds
END_WITHIN = 10.0  # real seconds a loop may take to end


class LoopDied(Exception):
    """A loop of this process ended without being asked to."""


class Threads:
    """Runs loops until told to stop. Each takes ``stop()`` and returns soon after it is true."""

    def __init__(self, loops: Mapping[str, Callable[[Callable[[], bool]], None]]) -> None:
        self._loops = loops
        self._stop = threading.Event()

    def run(self, stopped: Callable[[], bool]) -> None:
        """Run all loops. Raises :class:`LoopDied`."""
        threads = {
            name: threading.Thread(target=self._guard, args=(name, loop), name=name, daemon=True)
            for name, loop in self._loops.items()
        }
        for thread in threads.values():
            thread.start()
        beat = Beat()
        dead: list[str] = []
        while not stopped() and not dead:
            beat.touch()
            time.sleep(LOOK_EVERY)
            dead = [name for name, thread in threads.items() if not thread.is_alive()]
        self._stop.set()
        for thread in threads.values():
            thread.join(END_WITHIN)
        if dead:
            raise LoopDied(f"{', '.join(dead)} ended")

    def _guard(self, name: str, loop: Callable[[Callable[[], bool]], None]) -> None:
        try:
            loop(self._stop.is_set)
        except Exception:
            log.exception("loop died", loop=name)
