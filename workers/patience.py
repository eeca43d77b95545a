"""What a chunk waits in all: a slot that waits is one that sends nothing, and others stand behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Patience:
    """Of one chunk: the real seconds in which at least one of its mails waited, for tokens or (with a
    patience of its own) for connections. Mails that wait beside each other cost it once."""

    def __init__(self, most: float, now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._now = now
        self._spent = 0.0
        self._waiting = 0
        self._since = 0.0

    @property
    def left(self) -> float:
        """Seconds it may still wait; 0: what must wait goes back."""
        running = self._now() - self._since if self._waiting else 0.0
        return max(0.0, self._most - self._spent - running)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While one of its mails waits."""
        if not self._waiting:
            self._since = self._now()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._spent += self._now() - self._since
