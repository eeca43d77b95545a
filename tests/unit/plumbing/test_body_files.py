"""Body files: what was added is read, whoever writes; nothing goes that somebody may still name."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailweir.plumbing.bodies import BodyFiles, Place

REST = 3600.0


def files(folder: Path, limit: int = 1 << 20, age: float = 3600.0) -> BodyFiles:
    return BodyFiles(folder, limit=limit, age=age, rest=REST)


def child_ends_with(work: Callable[[], bool]) -> int:
    """The exit code of a forked child: 0 where ``work`` was right."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def add(of: BodyFiles, *some: bytes) -> list[Place]:
    with of.adding(some) as places:
        return list(places)


def nothing(_: int) -> bool:
    """No row names any file."""
    return False


def later() -> float:
    """A time at which every file was left alone."""
    return time.time() + REST + 1


@given(st.lists(st.lists(st.binary(max_size=300), max_size=5), max_size=8), st.integers(1, 900))
def test_what_was_added_is_read(groups: list[list[bytes]], limit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        of = files(Path(name), limit)
        placed = {p: b for group in groups for p, b in zip(add(of, *group), group, strict=True)}
        assert of.read(placed) == placed
        sizes = [path.stat().st_size for path in Path(name).iterdir()]
        longest = max((sum(map(len, group)) for group in groups), default=0)
        assert all(size < limit + longest for size in sizes)
        of.close()


def test_threads_write_beside_each_other(tmp_path: Path) -> None:
    of = files(tmp_path, 5000)
    texts = [[b"%d-%d " % (n, k) * 40 for k in range(20)] for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda group: add(of, *group), texts))
    for group, at in zip(texts, places, strict=True):
        assert of.read(at) == dict(zip(at, group, strict=True))
    of.close()
    assert not of._all, "a descriptor is still open"


def test_an_old_file_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = files(tmp_path, age=10.0)
    now = 50.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    (first,) = add(of, b"one")
    now += 9.9
    (second,) = add(of, b"two")
    now += 0.1
    (third,) = add(of, b"three")
    assert first.file == second.file != third.file
    of.close()


def test_a_file_in_use_is_not_swept(tmp_path: Path) -> None:
    of, sweeper = files(tmp_path, 1), files(tmp_path)
    with of.adding([b"one"]) as (place,):
        add(of, b"two")  # the first file is full; its row is not committed yet
        assert sweeper.sweep(nothing, later()) == 0
        assert of.read([place]) == {place: b"one"}
    assert sweeper.sweep(nothing, later()) == 1, "the second is being written"
    of.close()
    assert sweeper.sweep(nothing, time.time()) == 0, "it was written a moment ago"
    assert sweeper.sweep(lambda _: True, later()) == 0
    assert sweeper.sweep(nothing, later()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_dead_writers_file_is_swept(tmp_path: Path) -> None:
    def dies() -> bool:
        with files(tmp_path).adding([b"never committed"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    assert child_ends_with(dies) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    assert files(tmp_path).sweep(nothing, later()) == 1


def test_a_child_has_files_of_its_own(tmp_path: Path) -> None:
    of = files(tmp_path)
    (ours,) = add(of, b"parent")

    def writes() -> bool:
        of.forget()
        (place,) = add(of, b"child")
        return place.file != ours.file and not of.sweep(nothing, later())

    with of._mutex:  # as if another thread was writing
        assert child_ends_with(writes) == 0
    (more,) = add(of, b"parent again")
    assert more.file == ours.file
    assert of.read([ours, more]) == {ours: b"parent", more: b"parent again"}
    of.close()


def test_erased_is_what_was_named(tmp_path: Path) -> None:
    of = files(tmp_path)
    large = b"x" * 150_000
    before, middle, after = add(of, b"before", large, b"after")
    of.erase([middle])
    with pytest.raises(FileNotFoundError):
        of.erase([Place(1, 0, 5)])
    assert of.read([before, middle, after]) == {
        before: b"before",
        middle: bytes(len(large)),
        after: b"after",
    }
    of.close()


def test_a_file_that_was_removed_is_not_written_on(tmp_path: Path) -> None:
    of = files(tmp_path)
    (first,) = add(of, b"one")
    (tmp_path / f"{first.file:016x}.bodies").unlink()
    (second,) = add(of, b"two")
    assert of.read([first, second]) == {second: b"two"}
    of.close()


def test_a_disk_that_gives_what_it_has_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = files(tmp_path)
    (place,) = add(of, b"0123456789")
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: whole(fd, min(size, 3), at))
    assert of.read([place]) == {place: b"0123456789"}

    def fails(fd: int, size: int, at: int) -> bytes:
        if at > place.at:
            raise OSError(5, "Input/output error")
        return whole(fd, 3, at)

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(OSError, match="Input/output"):
        of.read([place])
    of.close()


def test_a_failed_sync_ends_the_file_and_leaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    of = files(tmp_path)
    (first,) = add(of, b"one")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fails)
        with pytest.raises(OSError, match="Input/output"):
            add(of, b"two")
    assert not of._all
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="Input/output"):
            add(of, b"three")
    assert not of._all
    (last,) = add(of, b"four")
    assert last.file != first.file
    assert of.read([first, last]) == {first: b"one", last: b"four"}
    of.close()


def test_other_names_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    for name in ("copy of 1.bodies", "ffffffffffffffff.bodies", "notes.txt"):
        (tmp_path / name).touch()
    assert files(tmp_path).sweep(nothing, later()) == 0
    assert len(list(tmp_path.iterdir())) == 3
