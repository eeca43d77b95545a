"""SQLite's write-ahead log: on the disk before a commit is acknowledged, and copied back in time.

SQLite would do both inside COMMIT, while all other writers wait: an fsync takes longer than most
transactions, a checkpoint several times that. Both may come later. The log is a sequence and is read to
the first frame that is not whole, so whoever syncs it after a commit has made durable this commit and
every one before it; what others have read of a commit that is not on the disk yet can only become durable
after it. So a write returns when its log is synced, as with ``synchronous = FULL``, and the next writer need
not wait for that. (https://www.sqlite.org/wal.html, https://www.sqlite.org/fileformat2.html 4.1)

A checkpoint copies the log back beside the writers, then the rest under the write lock: then everything is
copied and the next writer begins the log anew.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.engine.interfaces import DBAPICursor

from mailweir.plumbing.locks import FileLock

AUTOCHECKPOINT = 80_000
"""Pages of the log after which SQLite copies it back inside a commit: where nobody tidied."""
TIDY_EVERY = 0.5
"""Real seconds between two checkpoints by processes that are asked to tidy."""
OTHERS_EVERY = 3.0
"""Real seconds for the others: they have no time to lose, but must not be left alone with it."""
WORTH = 2000
"""Pages of a log worth beginning anew."""


class Wal:
    """Of one database file, in one process. Thread-safe."""

    def __init__(self, path: Path, writer: Engine, lock: FileLock, *, durable: bool) -> None:
        """``lock``: the write lock. Not ``durable``: the last commits may be lost with the machine's
        power, in order, nothing else."""
        self._path = path.with_name(path.name + "-wal")
        self._writer = writer
        self._lock = lock
        self._durable = durable
        self._turnstile: FileLock | None = None
        self._one = FileLock(path.with_name(path.name + ".tidy"))
        self._every = OTHERS_EVERY
        self._next = time.monotonic() + self._every

    def tidies(self, turnstile: FileLock) -> None:
        """This process makes the checkpoints from now on, in its turn at the turnstile."""
        self._turnstile = turnstile
        self._every = TIDY_EVERY
        self._next = time.monotonic() + self._every

    def committed(self) -> None:
        """After a commit, without the write lock. Raises :class:`OSError` where the disk fails: then nobody
        knows what is durable."""
        if self._durable:
            self._sync()
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            with self._one.held_if_free() as mine:
                if mine:
                    self._checkpoint()

    def _sync(self) -> None:
        # opened each time: the file is another one after all connections were closed once
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return  # nothing was ever written through a log
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def _checkpoint(self) -> None:
        connection = self._writer.raw_connection()
        try:
            cursor = connection.cursor()
            pages = _copy(cursor)
            if pages >= WORTH:
                with self._lock.held(self._turnstile):
                    _copy(cursor)
        finally:
            connection.close()

    def close(self) -> None:
        """Close the idle descriptors."""
        self._one.close()

    def forget(self) -> None:
        """In a child after a fork."""
        self._one.forget()


def _copy(cursor: DBAPICursor) -> int:
    """Copy back what no reader needs any more; pages in the log."""
    cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
    _, pages, _ = cursor.fetchone() or (0, 0, 0)
    return int(pages)
