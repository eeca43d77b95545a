"""The database under the spool: transactions, locks between processes, forks, migrations, outages."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from mailweir.plumbing import wal
from mailweir.plumbing.database import (
    Database,
    DatabaseUnavailable,
    migrate,
    open_database,
    schema_revision,
)
from mailweir.plumbing.locks import FileLock
from mailweir.plumbing.settings import Settings
from mailweir.spool import migrations
from mailweir.spool.schema import metadata
from mailweir.spool.store import Spool, open_spool
from tests.contract.spool.conftest import only_postgresql, only_sqlite
from tests.contract.spool.helpers import accept, message


def test_the_tables_are_those_of_the_schema(database: Database) -> None:
    # a plain engine: SQLAlchemy's reflection does not read our binary results
    engine = sqlalchemy.create_engine(database._writer.url)
    with engine.connect() as conn:
        context = MigrationContext.configure(conn)
        differences = [
            d
            for d in compare_metadata(context, metadata)
            if "watched" not in repr(d)  # made by this suite
        ]
    engine.dispose()
    assert differences == []


def test_head_is_the_newest_script() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == migrations.HEAD


@only_sqlite
def test_sqlite_syncs_every_commit_and_keeps_nobody_waiting(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, int]] = []
    real = os.fdatasync

    def sync(descriptor: int) -> None:
        """The commit is seen by others, and they may write, before it is on the disk."""
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not synced:
            synced.append((path, -1))
            with database.write() as conn:
                counted = conn.exec_driver_sql("SELECT count(*) FROM counters").scalar_one()
                conn.exec_driver_sql("INSERT INTO counters VALUES ('b', '{}', 1.0)")
            synced.append((path, int(counted)))
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", sync)
    with database.write() as conn:
        conn.exec_driver_sql("INSERT INTO counters VALUES ('a', '{}', 1.0)")
    assert [count for _, count in synced] == [-1, 1]
    assert all(path.endswith("-wal") for path, _ in synced)
    with database.read() as conn:
        assert conn.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


@only_sqlite
def test_a_disk_that_fails_is_said(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", sync)
    with pytest.raises(DatabaseUnavailable, match="Input/output"), database.write() as conn:
        conn.exec_driver_sql("INSERT INTO counters VALUES ('a', '{}', 1.0)")


def test_the_log_begins_anew_while_everybody_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "TIDY_EVERY", 0.0)
    monkeypatch.setattr(wal, "WORTH", 100)
    one, other = (
        Database(f"sqlite:///{tmp_path / 's.db'}"),
        Database(f"sqlite:///{tmp_path / 's.db'}"),
    )
    migrate(one)
    other.give_way()  # it tidies
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            with one.write() as conn:
                conn.exec_driver_sql("UPDATE counters SET updated_at = updated_at + 1")

    with one.write() as conn:
        conn.exec_driver_sql("INSERT INTO counters VALUES ('n', ?, 0.0)", ("x" * 4000,))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(busy)
        for number in range(300):
            with other.write() as conn:
                conn.exec_driver_sql(
                    "UPDATE counters SET body = ? || substr(body, 2)", (f"{number % 10}",)
                )
        stop.set()
        running.result()
    # each write is a page or more; a log that never began anew would hold them all
    size = (tmp_path / "s.db-wal").stat().st_size
    assert size < 300 * 8192 / 2, size
    with other.read() as conn:
        assert conn.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    one.close()
    other.close()


@only_postgresql
def test_postgresql_keeps_bodies_as_they_are(database: Database) -> None:
    with database.read() as conn:
        storage = conn.exec_driver_sql(
            "SELECT attstorage::text FROM pg_attribute WHERE attname = 'body'"
            " AND attrelid = 'contents'::regclass"
        ).scalar()
        options = conn.exec_driver_sql(
            "SELECT reloptions::text FROM pg_class WHERE relname = 'jobs'"
        ).scalar()
    assert storage == "e"
    assert options == "{fillfactor=70}"


def test_processes_that_start_together_migrate_once(
    tmp_path: Path, request: pytest.FixtureRequest, database: Database
) -> None:
    if database.dialect_name == "sqlite":
        url = f"sqlite:///{tmp_path / 'new.db'}"
    else:
        url = request.getfixturevalue("postgres_new")()
    code = (
        "import sys; from mailweir.plumbing.database import Database, migrate;"
        "migrate(Database(sys.argv[1]))"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(4)]
    assert [process.wait(60) for process in started] == [0, 0, 0, 0]
    fresh = Database(url)
    assert schema_revision(fresh) == migrations.HEAD
    migrate(fresh)
    fresh.close()


def test_an_exception_rolls_back(database: Database) -> None:
    class Stop(Exception):
        pass

    def work() -> None:
        with database.write() as conn:
            conn.exec_driver_sql("INSERT INTO counters VALUES ('a', '{}', 1.0)")
            raise Stop

    with pytest.raises(Stop):
        work()
    with database.read() as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM counters").scalar() == 0


def test_threads_never_lose_an_update(database: Database) -> None:
    with database.write() as conn:
        conn.exec_driver_sql("INSERT INTO counters VALUES ('n', '0', 0.0)")
    lock = " FOR UPDATE" if database.dialect_name == "postgresql" else ""

    def add(_: int) -> None:
        with database.write() as conn:
            query = f"SELECT body FROM counters WHERE key = 'n'{lock}"
            n = int(conn.exec_driver_sql(query).scalar_one())
            conn.exec_driver_sql(f"UPDATE counters SET body = '{n + 1}' WHERE key = 'n'")

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(add, range(200)))
    with database.read() as conn:
        assert conn.exec_driver_sql("SELECT body FROM counters").scalar() == "200"


@only_sqlite
def test_bulk_lets_everybody_else_write_first(database: Database) -> None:
    bulk = Database(database.url)
    bulk.give_way()

    def write(who: Database, name: str, order: list[str]) -> None:
        with who.write():
            order.append(name)

    def waiting() -> int:
        blocked = [li for li in Path("/proc/locks").read_text().splitlines() if "-> FLOCK" in li]
        return sum(f" {os.getpid()} " in line for line in blocked)

    before_it = []
    with ThreadPoolExecutor(12) as pool:
        for _ in range(9):
            order: list[str] = []
            with database.write():
                asked = []
                for count in range(1, 11):  # nine of bulk stand there before the one in a hurry
                    who, name = (bulk, "bulk") if count < 10 else (database, "hurry")
                    asked.append(pool.submit(write, who, name, order))
                    while waiting() < count:
                        assert not asked[-1].done()
            for each in asked:
                each.result()
            assert order.count("bulk") == 9
            before_it.append(order.index("hurry"))
    # One of bulk stood at the lock before it. Another may take the lock in the moment between its release
    # and the waking of who waits for it, on a busy machine now and then; without the turnstile all nine do.
    assert statistics.median(before_it) < 5, before_it
    turnstile = FileLock(Path(f"{database.url.removeprefix('sqlite:///')}.turn"))
    with bulk.write(), turnstile.held_if_free() as free:
        assert not free, "nobody else of bulk stands at the lock while one writes"
    with turnstile.held_if_free() as free:
        assert free
    turnstile.close()
    bulk.close()


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    with database.write() as conn:
        conn.exec_driver_sql("INSERT INTO counters VALUES ('a', '{}', 1.0)")
        with database.read() as other:
            assert other.exec_driver_sql("SELECT count(*) FROM counters").scalar() == 0


def test_a_child_after_a_fork_writes_on_connections_of_its_own(spool: Spool) -> None:
    accept(spool)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for _ in range(20):
                accept(spool)
            status = 0
        finally:
            os._exit(status)
    for _ in range(20):
        accept(spool)
    assert os.waitpid(child, 0)[1] == 0
    assert spool.counts() == {"bulk": {"accepted": 41}}


_HOLDER = """
import sys, time
from mailweir.plumbing.database import Database
database = Database(sys.argv[1])
with database.write() as conn:
    conn.exec_driver_sql("INSERT INTO counters VALUES ('held', '{}', 1.0)")
    print("held", flush=True)
    time.sleep(600)
"""


@only_sqlite
def test_a_killed_writer_leaves_no_lock_and_no_row(database: Database, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'spool.db'}"
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, url], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == "held\n"
        done = threading.Event()

        def write() -> None:
            with database.write() as conn:
                conn.exec_driver_sql("INSERT INTO counters VALUES ('mine', '{}', 1.0)")
            done.set()

        waiting = threading.Thread(target=write)
        waiting.start()
        assert not done.wait(0.3)
        holder.send_signal(signal.SIGKILL)
        assert done.wait(30)
        waiting.join()
    with database.read() as conn:
        rows = conn.exec_driver_sql("SELECT key FROM counters").scalars().all()
    assert rows == ["mine"]


@only_sqlite
def test_a_lock_of_a_foreign_program_is_a_typed_error(database: Database, tmp_path: Path) -> None:
    impatient = Database(
        f"sqlite:///{tmp_path / 'spool.db'}",
        Settings.model_validate({"database": {"busy_timeout": 0.1}}).database,
    )
    foreign = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable, match="locked"):
        Spool(impatient).accept([message("secret.person@gmail.com")])
    foreign.execute("ROLLBACK")
    foreign.close()
    Spool(impatient).accept([message("secret.person@gmail.com")])
    impatient.close()


@only_postgresql
def test_a_restarted_server_costs_one_error(spool: Spool, database: Database) -> None:
    with ThreadPoolExecutor(4) as pool:  # fill the connection pool
        list(pool.map(lambda _: accept(spool), range(8)))
    foreign = sqlalchemy.create_engine(database._writer.url, poolclass=sqlalchemy.NullPool)
    with foreign.connect() as conn:
        ended = conn.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).all()
    assert ended
    with pytest.raises(DatabaseUnavailable):
        accept(spool)
    accept(spool)
    assert spool.counts() == {"bulk": {"accepted": 9}}


def test_no_error_tells_a_recipient(spool: Spool) -> None:
    with spool.database.write() as conn:
        conn.exec_driver_sql("DROP TABLE contents")
    with pytest.raises(Exception, match="contents") as caught:
        spool.accept([message("secret.person@gmail.com")])
    assert "secret" not in str(caught.value)


@only_sqlite
def test_a_full_disk_writes_nothing(database: Database, tmp_path: Path) -> None:
    limited = Database(f"sqlite:///{tmp_path / 'spool.db'}")
    with limited.read() as conn:
        pages = conn.exec_driver_sql("PRAGMA page_count").scalar_one()
    with limited.write() as conn:
        conn.exec_driver_sql(f"PRAGMA max_page_count = {pages + 5}")
    spool = Spool(limited)
    with pytest.raises(DatabaseUnavailable, match="full"):
        spool.accept([message("a@gmail.com", body=os.urandom(60_000))])
    assert spool.counts() == {}
    limited.close()


def test_an_unreachable_server_is_a_typed_error(tmp_path: Path) -> None:
    url = f"postgresql://nobody:hunter2@/none?host={tmp_path}"
    settings = Settings.model_validate({"database": {"url": url}})
    with pytest.raises(DatabaseUnavailable) as caught:
        open_database(settings)
    assert caught.value.retryable
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(Database(url))


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y"])
def test_what_cannot_be_a_spool_is_refused(url: str) -> None:
    with pytest.raises((ValueError, ModuleNotFoundError)):
        Database(url)


def test_a_new_installation_has_a_private_file_and_a_node(tmp_path: Path) -> None:
    settings = Settings.model_validate({"data": tmp_path / "deep" / "data"})
    first = open_spool(settings)
    second = open_spool(settings)
    assert second.take_node() == 3
    assert stat.S_IMODE((tmp_path / "deep" / "data" / "spool.db").stat().st_mode) == 0o600
    first.database.close()
    second.database.close()


def test_the_databases_clock_is_real(database: Database) -> None:
    with database.read() as conn:
        assert abs(database.now_real(conn) - time.time()) < 5


@only_postgresql
def test_deadlocks_are_repeated(database: Database) -> None:
    spool = Spool(database)
    with database.write() as conn:
        conn.exec_driver_sql("INSERT INTO counters VALUES ('a', '0', 0), ('b', '0', 0)")
    both = threading.Barrier(2)
    first = {"a": True, "b": True}

    def circle(one: str, two: str) -> Callable[[], None]:
        def run() -> None:
            def work(_: object, cursor: object) -> None:
                execute = cursor.execute  # type: ignore[attr-defined]  # a driver's cursor
                execute(f"UPDATE counters SET body = body || 'x' WHERE key = '{one}'")
                if first[one]:
                    first[one] = False
                    both.wait(20)
                execute(f"UPDATE counters SET body = body || 'x' WHERE key = '{two}'")

            spool._write(work)

        return run

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(circle("a", "b")), pool.submit(circle("b", "a"))]:
            future.result(30)
    with database.read() as conn:
        rows = conn.exec_driver_sql("SELECT body FROM counters ORDER BY key").scalars().all()
    assert rows == ["0xx", "0xx"]


@only_sqlite
def test_two_processes_share_a_file(spool: Spool, tmp_path: Path) -> None:
    code = (
        "import sys; from mailweir.plumbing.database import Database;"
        "from mailweir.spool.store import Spool;"
        "from tests.contract.spool.helpers import accept;"
        "spool = Spool(Database(sys.argv[1]));"
        "[accept(spool, 3) for _ in range(100)]"
    )
    url = f"sqlite:///{tmp_path / 'spool.db'}"
    started = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(2)]
    for _ in range(100):
        accept(spool, 3)
    assert [process.wait(60) for process in started] == [0, 0]
    assert spool.counts() == {"bulk": {"accepted": 900}}
