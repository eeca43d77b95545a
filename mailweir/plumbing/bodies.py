"""Bodies of mail in files beside the database: written once, in a row, read by place.

A database writes a body twice (its log, then its pages) and reads it page by page; an append and one read
cost less (docs/decisions/0045-bodies.md). The database keeps where a body is. A body is on the disk before
the row that names it is committed; a body no row names is garbage, which goes with its file.

A file has one process that writes it and holds it locked. After a size or an age the next body begins
another one. A file is deleted when no row names it any more, nobody writes it and it was left alone for a
while.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from mailweir.contracts.ids import new_id

_ZEROS = bytes(65_536)
_NAME = re.compile(r"[0-7][0-9a-f]{15}\.bodies")  # of a 63-bit number


class Place(NamedTuple):
    """Where a body is."""

    file: int
    at: int  # byte
    size: int  # bytes


@dataclass(slots=True)
class _Open:
    """A file this process writes."""

    id: int
    descriptor: int
    began: float
    end: int = 0
    users: int = 0


class BodyFiles:
    """The files of one folder. Thread-safe, and after a fork the child has files of its own.

    Every operation may raise :class:`OSError`: the disk is full or fails, or the folder cannot be reached."""

    def __init__(self, folder: Path, *, limit: int, age: float, rest: float) -> None:
        """A file takes about ``limit`` bytes, and nothing more ``age`` real seconds after it began, so that
        it can go. One no row names goes ``rest`` real seconds after its last write."""
        self.folder = folder.absolute()
        self._limit = limit
        self._age = age
        self._rest = rest
        self._mutex = threading.Lock()
        self._current: _Open | None = None
        self._all: set[int] = set()

    @contextmanager
    def adding(self, bodies: Sequence[bytes]) -> Iterator[list[Place]]:
        """Write bodies; where they are, once they are on the disk. Within the block their file is not
        deleted: commit the rows in it."""
        with self._mutex:
            file = self._writable()
            try:
                places = [self._append(file, body) for body in bodies]
                os.fdatasync(file.descriptor)
            except BaseException:
                self._retire()  # what it holds from here on, nobody knows
                raise
            file.users += 1
        try:
            yield places
        finally:
            with self._mutex:
                file.users -= 1
                if file is not self._current and not file.users:
                    self._close(file.descriptor)

    def _append(self, file: _Open, body: bytes) -> Place:
        place = Place(file.id, file.end, len(body))
        _write(file.descriptor, body, file.end)
        file.end += len(body)
        return place

    def _writable(self) -> _Open:
        file = self._current
        now = time.monotonic()
        fits = file is not None and file.end < self._limit and now - file.began < self._age
        if file is not None and fits and os.fstat(file.descriptor).st_nlink:
            return file
        self._retire()
        self._current = self._begin(now)
        return self._current

    def _begin(self, now: float) -> _Open:
        if not self.folder.exists():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_folder(self.folder.parent)
        number = new_id()
        # mail is nobody else's to read
        descriptor = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._all.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not os.fstat(descriptor).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "swept before it was locked; try again")
            _sync_folder(self.folder)
        except BaseException:
            self._close(descriptor)
            raise
        return _Open(number, descriptor, now)

    def _retire(self) -> None:
        file, self._current = self._current, None
        if file is not None and not file.users:
            self._close(file.descriptor)

    def _close(self, descriptor: int) -> None:
        self._all.discard(descriptor)
        os.close(descriptor)

    def read(self, places: Iterable[Place]) -> dict[Place, bytes]:
        """Bodies by place. Absent is one whose file is not there, or ends before it."""
        found: dict[Place, bytes] = {}
        for number, those in _by_file(places):
            with suppress(FileNotFoundError), self._opened(number, os.O_RDONLY) as descriptor:
                for place in those:
                    body = _read(descriptor, place.size, place.at)
                    if len(body) == place.size:
                        found[place] = body
        return found

    def erase(self, places: Iterable[Place]) -> None:
        """Overwrite bodies. Raises :class:`OSError` where a file is not there: its disk may be away."""
        for number, those in _by_file(places):
            with self._opened(number, os.O_WRONLY) as descriptor:
                for place in those:
                    for at in range(place.at, place.at + place.size, len(_ZEROS)):
                        _write(descriptor, _ZEROS[: place.at + place.size - at], at)
                os.fdatasync(descriptor)

    def sweep(self, named: Callable[[int], bool], now: float) -> int:
        """Delete files that no row names (``named`` tells of a file's number), that nobody writes and that
        have rested at ``now`` (real Unix seconds); how many."""
        return sum(self._sweep(number, named, now) for number in self._numbers())

    def _sweep(self, number: int, named: Callable[[int], bool], now: float) -> bool:
        # FileNotFoundError: another sweeper was here. For writing, since NFS locks nothing else
        with (
            suppress(FileNotFoundError, BlockingIOError),
            self._opened(number, os.O_RDWR) as descriptor,
        ):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # looked at under the lock: who held it may have written a moment ago
            if os.fstat(descriptor).st_mtime < now - self._rest and not named(number):
                self._path(number).unlink()
                return True
        return False

    def _numbers(self) -> list[int]:
        names = (path.name for path in self.folder.glob("*.bodies"))
        return sorted(int(name[:16], 16) for name in names if _NAME.fullmatch(name))

    @contextmanager
    def _opened(self, number: int, flags: int) -> Iterator[int]:
        descriptor = os.open(self._path(number), flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:016x}.bodies"

    def close(self) -> None:
        """Close the file that nobody is using."""
        with self._mutex:
            self._retire()

    def forget(self) -> None:
        """In a child after a fork: the parent goes on with its files."""
        self._mutex = threading.Lock()
        self._current = None
        while self._all:
            os.close(self._all.pop())


def _by_file(places: Iterable[Place]) -> Iterator[tuple[int, Iterator[Place]]]:
    return groupby(sorted(places), key=attrgetter("file"))


def _write(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _read(descriptor: int, size: int, at: int) -> bytes:
    """Fewer bytes only where the file ends: a disk that fails gives what it has before it says so."""
    data = os.pread(descriptor, size, at)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), at + len(data))):
        data += more
    return data


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
