"""Bodies in files: on the disk before their row, read by place, gone with their last row."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from journal.audit import erase
from mailweir.plumbing.database import Database, DatabaseUnavailable
from mailweir.plumbing.settings import DatabaseSettings
from mailweir.spool.store import Spool
from tests.contract.spool.conftest import only_postgresql
from tests.contract.spool.helpers import message, route, send

BODY = b"Subject: x\r\n\r\n" + b"a secret line\r\n" * 700
Opener = Callable[..., Spool]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the bodies are."""
    return tmp_path / "bodies"


@pytest.fixture
def opened(database: Database, folder: Path) -> Iterator[Opener]:
    """Opens further spools over the same database, with settings of their own."""
    made: list[Database] = []

    def one(**values: object) -> Spool:
        settings = DatabaseSettings.model_validate({"bodies": folder, "bodies_from": 0, **values})
        made.append(Database(database._writer.url, settings))
        return Spool(made[-1])

    yield one
    for each in made:
        each.close()


@pytest.fixture
def filed(opened: Opener) -> Spool:
    """A spool whose bodies are all in files."""
    return opened()


def in_rows(spool: Spool) -> int:
    """Bytes of bodies in the database."""
    with spool.database.read() as conn:
        value = conn.exec_driver_sql("SELECT coalesce(sum(length(body)), 0) FROM contents")
        return int(value.scalar_one())


def places(spool: Spool) -> list[tuple[object, ...]]:
    """Where the bodies are."""
    with spool.database.read() as conn:
        rows = conn.exec_driver_sql("SELECT id, body_file, body_at FROM contents ORDER BY id")
        return [tuple(row) for row in rows]


def rows(spool: Spool, table: str) -> int:
    """How many rows a table has."""
    with spool.database.read() as conn:
        return int(conn.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())


def age(folder: Path) -> None:
    """Make every file as old as a sweep wants it."""
    then = time.time() - DatabaseSettings().bodies_rest - 1
    for path in folder.iterdir():
        os.utime(path, (then, then))


def test_a_body_is_in_a_file_and_comes_back_whole(filed: Spool, folder: Path) -> None:
    sent = [message(f"u{n}@gmail.com", body=BODY + b"%d\r\n" % n) for n in range(300)]
    filed.accept(sent[:200])
    filed.accept(sent[200:])
    assert in_rows(filed) == 0
    assert filed.contents([m.content.id for m in sent]) == {m.content.id: m.content for m in sent}
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_is_accepted_again_keeps_its_first_body(filed: Spool) -> None:
    first = message("a@gmail.com", body=BODY, key="k")
    filed.accept([first])
    filed.accept([first])
    before = places(filed)
    filed.accept([message("b@gmail.com", content=first.content)])
    assert places(filed) == before
    again, other = message("a@gmail.com", body=BODY, key="k"), message("c@gmail.com", body=BODY)
    filed.accept([again, other])
    ids = [m.content.id for m in (first, again, other)]
    assert set(filed.contents(ids)) == {first.content.id, other.content.id}
    assert filed.contents(ids)[first.content.id] == first.content


def test_a_small_commit_stays_in_the_database(opened: Opener, folder: Path) -> None:
    spool = opened(bodies_from=len(BODY) + 1)
    one, two = message("a@gmail.com", body=BODY), message("b@gmail.com", body=BODY)
    spool.accept([one])
    assert not folder.exists()
    spool.accept([two, message("c@gmail.com", body=b"Subject: y\r\n\r\n")])
    assert len(list(folder.iterdir())) == 1
    both = {m.content.id: m.content for m in (one, two)}
    assert spool.contents(list(both)) == both


@only_postgresql
def test_who_was_told_of_no_folder_says_so(filed: Spool, spool: Spool) -> None:
    m = message("a@gmail.com", body=BODY)
    filed.accept([m])
    assert spool.contents([m.content.id]) == {m.content.id: None}
    with pytest.raises(DatabaseUnavailable, match=r"set database\.bodies"):
        spool.sweep_bodies()
    spool.accept([message("b@gmail.com", body=BODY)])
    assert in_rows(spool) == len(BODY)


def test_a_folder_that_cannot_be_reached_loses_nothing(filed: Spool, folder: Path) -> None:
    m = message("a@gmail.com", body=BODY)
    filed.accept([m])
    filed.database.close()  # the machine starts anew, without the disk
    away = folder.rename(folder.with_name("away"))
    assert filed.contents([m.content.id]) == {m.content.id: None}, "waited for, not given up"
    # a door goes on beside it, as in the mount point of a disk that is not mounted
    later = message("b@gmail.com", body=BODY)
    filed.accept([later])
    both = [m.content.id, later.content.id]
    assert filed.contents(both) == {m.content.id: None, later.content.id: later.content}
    for chunk in route(filed):
        send(filed, chunk)
    with pytest.raises(DatabaseUnavailable, match="No such file"):
        erase(filed.database, "a@gmail.com")
    assert rows(filed, "contents") == 2, "nothing was erased"
    (path,) = folder.iterdir()
    path.rename(away / path.name)  # mounted again, with what was written beside it
    folder.rmdir()
    away.rename(folder)
    assert filed.contents(both) == {m.content.id: m.content, later.content.id: later.content}
    assert erase(filed.database, "a@gmail.com") == 1


def test_a_lost_file_takes_its_own_bodies_only(opened: Opener, folder: Path) -> None:
    spool = opened(bodies_file=1)
    lost, cut, whole = (message(f"{n}@gmail.com", body=BODY) for n in "abc")
    for m in (lost, cut, whole):
        spool.accept([m])
    first, second, _ = sorted(folder.iterdir())
    first.unlink()
    os.truncate(second, len(BODY) - 1)
    ids = [m.content.id for m in (lost, cut, whole)]
    assert spool.contents(ids) == {ids[0]: None, ids[1]: None, ids[2]: whole.content}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_accepts_nothing_and_harms_nothing(filed: Spool, folder: Path) -> None:
    earlier = message("a@gmail.com", body=BODY)
    filed.accept([earlier])
    with (
        files_of_at_most(len(BODY) + 100),
        pytest.raises(DatabaseUnavailable, match=str(folder)),
    ):
        filed.accept([message("b@gmail.com", body=BODY)])
    later = message("c@gmail.com", body=BODY)
    filed.accept([later])
    assert rows(filed, "jobs") == 2
    both = {m.content.id: m.content for m in (earlier, later)}
    assert filed.contents(list(both)) == both


def test_a_file_goes_with_its_last_row(opened: Opener, folder: Path) -> None:
    spool = opened(bodies_file=2 * len(BODY))
    gone, waits, other = (message(f"{n}@gmail.com", body=BODY) for n in "abc")
    spool.accept([gone])
    (chunk,) = route(spool)
    send(spool, chunk)
    spool.accept([waits])  # its file is full now
    spool.accept([other])
    spool.database.close()
    age(folder)
    spool.prune(time.time() + 100, 50, 1e9, 100)
    assert set(spool.contents([gone.content.id, waits.content.id])) == {waits.content.id}
    assert spool.sweep_bodies() == 0, "a row names each"
    (chunk,) = route(spool, size=1, limit=1)
    send(spool, chunk)
    spool.prune(time.time() + 100, 50, 1e9, 100)
    assert spool.sweep_bodies() == 1
    assert spool.contents([other.content.id]) == {other.content.id: other.content}


def test_how_old_a_file_grows_and_how_long_it_rests_is_set(opened: Opener, folder: Path) -> None:
    spool, keeper, sweeper = opened(bodies_age=1e-9), opened(), opened(bodies_rest=0.0)
    for n in "ab":
        spool.accept([message(f"{n}@gmail.com", body=BODY)])
    assert len(list(folder.iterdir())) == 2, "each began a file"
    spool.database.close()
    for chunk in route(spool):
        send(spool, chunk)
    spool.prune(time.time() + 100, 50, 1e9, 100)
    assert keeper.sweep_bodies() == 0, "written a moment ago"
    assert sweeper.sweep_bodies() == 2


def test_a_recipients_body_is_overwritten(filed: Spool, folder: Path) -> None:
    theirs, others = message("a@gmail.com", body=BODY), message("b@gmail.com", body=BODY)
    filed.accept([theirs, others])
    for chunk in route(filed):
        send(filed, chunk)
    assert erase(filed.database, "a@gmail.com") == 1
    (path,) = folder.iterdir()
    kept = path.read_bytes()
    assert kept.count(b"a secret line") == 700
    assert len(kept) == 2 * len(BODY)
    ids = [theirs.content.id, others.content.id]
    assert filed.contents(ids) == {others.content.id: others.content}


def test_a_body_is_synced_before_its_row_is_there(
    filed: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = os.fdatasync

    def looked(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".bodies"):
            assert os.fstat(descriptor).st_size == len(BODY)
            seen.append(rows(filed, "jobs"))
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", looked)
    filed.accept([message("a@gmail.com", body=BODY)])
    assert seen == [0]
    assert rows(filed, "jobs") == 1


def test_no_sweep_takes_a_body_whose_row_is_on_its_way(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, sweeper = opened(bodies_file=1), opened()
    m, other = message("a@gmail.com", body=BODY), message("b@gmail.com", body=BODY)
    write = spool._write

    def swept(work: Any) -> Any:
        monkeypatch.undo()
        age(folder)
        spool.accept([other])  # which begins another file
        age(folder)
        assert sweeper.sweep_bodies() == 0
        return write(work)

    monkeypatch.setattr(spool, "_write", swept)
    spool.accept([m])
    both = {each.content.id: each.content for each in (m, other)}
    assert spool.contents(list(both)) == both
