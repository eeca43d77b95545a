"""Policy time: a map of real time with one origin and one rate for all processes.

``now = origin + (real - origin) * rate``. Rate 1 in production; a test runs a day in a minute with rate
1440. Lua scripts get the same two numbers and apply them to Redis' TIME, lease columns are compared
with the database's now through them. Socket timeouts, heartbeats and the back-off of our own
processes stay real.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Origin in real Unix seconds, rate in policy seconds per real second."""

    origin: float = 0.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"clock rate must be positive, not {self.rate}")

    def now(self) -> float:
        """Policy seconds now."""
        return self.at(time.time())

    def at(self, real: float) -> float:
        """Policy seconds at a real Unix time."""
        if self.rate == 1.0:
            return real
        return self.origin + (real - self.origin) * self.rate

    def real(self, seconds: float) -> float:
        """Real seconds that a span of policy seconds takes: what a process may wait for."""
        return seconds / self.rate

    @property
    def lua_args(self) -> tuple[str, str]:
        """Origin and rate as the arguments every script of ours takes (keys.py, scripts)."""
        return repr(self.origin), repr(self.rate)


def since_boot() -> float:
    """Real seconds since the machine started, on Linux those it slept included (``time.monotonic`` leaves
    them out; clock_gettime(2), CLOCK_BOOTTIME): what a lease that others watch is measured by. A virtual
    machine whose clocks stand still learns nothing from it."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


REAL = Clock()
