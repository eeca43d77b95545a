"""The SQL database: one PostgreSQL server, or one SQLite file shared by the processes of a machine.

SQLite: every write transaction is BEGIN IMMEDIATE under an advisory lock on ``FILE.lock``. SQLite's own
busy handler sleeps and polls, so that a busy writer starves the others; the kernel queues the waiters
of a lock in order. Bulk's processes queue at a turnstile before it (:meth:`Database.give_way`).
Reads use an engine of their own that never begins a write transaction. What a disk takes long for, syncing
and checkpoints, is done outside the lock (``mailweir.plumbing.wal``).
PostgreSQL: plain transactions, binary results, statements prepared at first use.
"""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from psycopg import errors
from psycopg.pq import Format
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from mailweir.plumbing.bodies import BodyFiles
from mailweir.plumbing.locks import FileLock
from mailweir.plumbing.settings import DatabaseSettings, Settings
from mailweir.plumbing.wal import AUTOCHECKPOINT, Wal

_MIGRATION_LOCK = 0x6D77_5350  # pg_advisory_xact_lock: only one process migrates
_PAGE_SIZE = 4096  # bytes: a commit changes about one page a job in the index of recipients


class DatabaseUnavailable(Exception):
    """The database cannot be reached, is locked or full. Nothing was written; try again later."""

    retryable = True


class Deadlock(DatabaseUnavailable):
    """PostgreSQL ended this transaction in favour of another; at once repeatable."""


class _BinaryCursor(psycopg.Cursor[Any]):
    """Results in binary: a 10 KiB bytea as text would travel as 20 KiB of hex."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.format = Format.BINARY


class Database:
    """One database. Thread-safe, and safe to use after a fork (the child opens its own connections)."""

    def __init__(self, url: str | URL, settings: DatabaseSettings | None = None) -> None:
        settings = settings or DatabaseSettings.model_validate({})
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.dialect_name = parsed.get_backend_name()
        self._lock: FileLock | None = None
        self._wal: Wal | None = None
        self._turnstile: FileLock | None = None
        self._patient: FileLock | None = None  # the turnstile, once this process gives way
        folder = settings.bodies
        if self.dialect_name == "sqlite":
            self._writer, self._reader = self._open_sqlite(parsed, settings)
            folder = folder or Path(f"{parsed.database}-bodies")
        elif self.dialect_name == "postgresql":
            self._writer, self._reader = _open_postgresql(parsed, settings)
        else:
            raise ValueError(f"database.url: {self.dialect_name} is not sqlite or postgresql")
        self.url = parsed.render_as_string(hide_password=True)
        self.bodies: BodyFiles | None = None
        if folder is not None:
            self.bodies = BodyFiles(
                folder,
                limit=settings.bodies_file,
                age=settings.bodies_age,
                rest=settings.bodies_rest,
            )
        self.bodies_from = settings.bodies_from
        _after_fork(self)

    def _open_sqlite(self, url: URL, settings: DatabaseSettings) -> tuple[Engine, Engine]:
        if url.database in (None, "", ":memory:"):
            raise ValueError("database.url: SQLite needs a file; several processes share it")
        path = Path(str(url.database))
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # content is nobody else's to read
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        self._turnstile = FileLock(path.with_name(path.name + ".turn"))
        writer = _sqlite_engine(url, settings, query_only=False)
        self._wal = Wal(path, writer, self._lock, durable=settings.synchronous == "FULL")
        reader = _sqlite_engine(url, settings, query_only=True)

        @event.listens_for(writer, "begin")
        def _begin(conn: Connection) -> None:
            # at once, not deferred: an upgrade from read to write fails without waiting
            conn.connection.cursor().execute("BEGIN IMMEDIATE")

        return writer, reader

    def give_way(self) -> None:
        """From now on writes of this process let others go first: of all who give way one at a time waits
        or writes, so that a transactional mail's three transactions mostly stand behind one of bulk each, not
        ten. SQLite only; PostgreSQL has many writers."""
        self._patient = self._turnstile
        if self._wal is not None and self._turnstile is not None:
            self._wal.tidies(self._turnstile)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading; each statement sees what is committed when it starts.

        Raises :class:`DatabaseUnavailable`."""
        with self._typed_errors(), self._reader.connect() as conn:
            yield conn

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction: committed at the end of the block, rolled back by an exception.

        Raises :class:`DatabaseUnavailable`; after it nothing of this transaction was written, but for a
        disk that fails while it is synced: then nobody knows."""
        with self._typed_errors():
            if self._lock is None or self._wal is None:
                with self._writer.connect() as conn:
                    conn.begin()  # named: a statement on the driver's cursor would not begin one
                    yield conn
                    if conn.in_transaction():  # the block may have committed by itself
                        conn.commit()
                return
            with self._lock.held(self._patient), self._writer.begin() as conn:
                yield conn
            try:
                self._wal.committed()
            except OSError as error:
                raise DatabaseUnavailable(f"{self.url}: not synced: {error.strerror}") from None

    def now_real(self, conn: Connection) -> float:
        """Real Unix seconds by the database's clock (SQLite runs on ours)."""
        if self._lock is not None:
            return time.time()
        value = conn.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(value.scalar_one())

    @contextmanager
    def body_files(self) -> Iterator[BodyFiles]:
        """The files that rows name. Raises :class:`DatabaseUnavailable` for their errors, and where this
        process was told of no folder."""
        if self.bodies is None:
            raise DatabaseUnavailable("bodies are in files: set database.bodies as doors have it")
        try:
            yield self.bodies
        except OSError as error:
            raise DatabaseUnavailable(f"{self.bodies.folder}: {error.strerror or error}") from None

    def close(self) -> None:
        """Close every idle connection."""
        self._writer.dispose()
        self._reader.dispose()
        for files in (self._lock, self._turnstile, self._wal, self.bodies):
            if files is not None:
                files.close()

    def _forked(self) -> None:
        self._writer.dispose(close=False)
        self._reader.dispose(close=False)
        for files in (self._lock, self._turnstile, self._wal, self.bodies):
            if files is not None:
                files.forget()

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, sqlite3.OperationalError, psycopg.OperationalError, PoolTimeout) as e:
            origin = e.orig if isinstance(e, DBAPIError) else e
            if isinstance(origin, (errors.DeadlockDetected, errors.SerializationFailure)):
                raise Deadlock("deadlock: repeat the transaction") from e
            if isinstance(origin, psycopg.OperationalError) and _is_disconnect(origin):
                self._writer.dispose()  # the other connections of the pool are dead, too
            if isinstance(
                origin, (sqlite3.OperationalError, psycopg.OperationalError, PoolTimeout)
            ):
                # the driver's text only: a statement has addresses among its parameters
                raise DatabaseUnavailable(str(origin).strip()) from None
            raise

    def __repr__(self) -> str:
        return f"Database({self.url})"


def _after_fork(database: Database) -> None:
    reference = weakref.ref(database)

    def in_child() -> None:
        alive = reference()
        if alive is not None:
            alive._forked()

    os.register_at_fork(after_in_child=in_child)


def _is_disconnect(error: psycopg.OperationalError) -> bool:
    """Without a SQLSTATE the server did not answer; class 08 and 57P0x: it ended the connection."""
    state = error.sqlstate
    return state is None or state.startswith(("08", "57P0"))


def _sqlite_engine(url: URL, settings: DatabaseSettings, *, query_only: bool) -> Engine:
    engine = sqlalchemy.create_engine(
        url,
        poolclass=QueuePool,
        pool_size=settings.pool_size,
        max_overflow=64,
        hide_parameters=True,
        connect_args={
            "check_same_thread": False,
            "timeout": settings.busy_timeout,
            "isolation_level": None,  # no implicit BEGIN of the driver: ours are explicit
            "cached_statements": 256,
        },
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _: object) -> None:
        if not query_only:
            connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")  # heeded by a new file only
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT}")
        connection.execute("PRAGMA synchronous = NORMAL")  # wal.py syncs
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA query_only = {'ON' if query_only else 'OFF'}")

    return engine


def _open_postgresql(url: URL, settings: DatabaseSettings) -> tuple[Engine, Engine]:
    milliseconds = int(settings.statement_timeout * 1000)
    engine = sqlalchemy.create_engine(
        url,
        pool_size=settings.pool_size,
        max_overflow=64,
        pool_timeout=settings.connect_timeout,
        pool_pre_ping=False,
        hide_parameters=True,
        connect_args={
            "connect_timeout": max(1, int(settings.connect_timeout)),
            "cursor_factory": _BinaryCursor,
            "prepare_threshold": 1,
            # Planned each time: a plan made while a table was empty reads all of it for ever (8 ms, not
            # 0.1). And never a whole table where an index is there, for the same reason: statistics of a
            # table that was small a minute ago.
            "options": f"-c statement_timeout={milliseconds} -c jit=off "
            "-c plan_cache_mode=force_custom_plan -c enable_seqscan=off",
        },
    )
    return engine, engine.execution_options(isolation_level="AUTOCOMMIT")


def open_database(settings: Settings) -> Database:
    """The database of these settings, reached once to be sure. Raises :class:`DatabaseUnavailable`."""
    url = settings.database.url or URL.create(
        "sqlite", database=str(settings.data.absolute() / "spool.db")
    )
    database = Database(url, settings.database)
    with database.read() as conn:
        conn.exec_driver_sql("SELECT 1")
    return database


def schema_revision(database: Database) -> str | None:
    """The revision this database is at; None before the first migration."""
    with database.read() as conn:
        if not sqlalchemy.inspect(conn).has_table("alembic_version"):
            return None
        found = conn.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)


def migrate(database: Database) -> None:
    """Bring the tables to this release's revision; safe when several processes start together."""
    from mailweir.spool import migrations

    if schema_revision(database) == migrations.HEAD:
        return
    with database.write() as conn:
        if database.dialect_name == "postgresql":
            conn.exec_driver_sql("SET LOCAL statement_timeout = 0")
            conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        migrations.upgrade(conn)
    # not on SQLite: statistics of an empty or quiet database mislead it (docs/decisions/0040-sqlite.md)
    if database.dialect_name == "postgresql":
        with suppress(DatabaseUnavailable), database.write() as conn:
            conn.exec_driver_sql("ANALYZE")
