"""An advisory lock between processes, in the order of asking.

Nearly: the kernel wakes the first who waits, and somebody may take a free lock before that one has woken.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FileLock:
    """An exclusive flock between threads and processes; each holder has a descriptor of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._free: list[int] = []
        self._all: list[int] = []

    @contextmanager
    def held(self, turnstile: FileLock | None = None) -> Iterator[None]:
        """Wait for the lock, in the order of asking, and hold it. Of those who come through a turnstile
        one at a time waits for it or holds it: who comes without one mostly waits for one."""
        if turnstile is not None:
            with turnstile.held(), self.held():
                yield
            return
        descriptor = self._descriptor()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            self._free.append(descriptor)

    @contextmanager
    def held_if_free(self) -> Iterator[bool]:
        """Hold the lock where nobody does; whether it is held."""
        descriptor = self._descriptor()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._free.append(descriptor)
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            self._free.append(descriptor)

    def _descriptor(self) -> int:
        try:
            return self._free.pop()
        except IndexError:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            self._all.append(descriptor)
            return descriptor

    def forget(self) -> None:
        """In a child after a fork: inherited descriptors would keep the parent's lock held after its
        death, also those that other threads of the parent were using."""
        self._free.clear()
        while self._all:
            os.close(self._all.pop())

    def close(self) -> None:
        """Close the idle descriptors."""
        while self._free:
            descriptor = self._free.pop()
            self._all.remove(descriptor)
            os.close(descriptor)
