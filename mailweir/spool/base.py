"""What every part of the spool shares: the database, the clock, and how a statement is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random

from mailweir.plumbing.clock import REAL, Clock
from mailweir.plumbing.database import Database, Deadlock
from mailweir.spool.statements import Many, Statement

T = TypeVar("T")

_MOST_ROWS = 64
"""Of one statement on SQLite: their values stay far below its limit of 32,766."""

# PostgreSQL ends one of two transactions that wait for each other; ours are repeatable.
_REPEAT = Retrying(
    retry=retry_if_exception_type(Deadlock),
    stop=stop_after_attempt(8),
    wait=wait_random(0, 0.05),
    reraise=True,
)


class Room:
    """Base of the parts of :class:`mailweir.spool.store.Spool`.

    Statements run on the driver's own cursor: SQLAlchemy keeps the connections and transactions, its
    result rows alone would cost as much as the statement (measured, ``benchmarks/spool.py``)."""

    def __init__(
        self, database: Database, *, idempotency_hours: float = 72.0, clock: Clock = REAL
    ) -> None:
        self.database = database
        self.clock = clock
        self.idempotency_seconds = idempotency_hours * 3600.0
        self._postgresql = database.dialect_name == "postgresql"
        self._dialect = int(self._postgresql)

    # --- running statements
    def _read(self, statement: Statement, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self.database.read() as conn:
            return self._rows(_cursor(conn), statement, parameters)

    def _write(self, work: Callable[[Connection, DBAPICursor], T]) -> T:
        """Run ``work`` in one write transaction; again after a deadlock."""

        def once() -> T:
            with self.database.write() as conn:
                return work(conn, _cursor(conn))

        return _REPEAT(once) if self._postgresql else once()

    def _write_one(self, statement: Statement, parameters: Sequence[Any]) -> int:
        """One statement in a write transaction of its own; rows changed."""
        return self._write(lambda _, cursor: self._run(cursor, statement, parameters))

    def _run(self, cursor: DBAPICursor, statement: Statement, parameters: Sequence[Any]) -> int:
        """Rows changed."""
        cursor.execute(statement[self._dialect], parameters)
        return int(cursor.rowcount)

    def _rows(
        self, cursor: DBAPICursor, statement: Statement, parameters: Sequence[Any]
    ) -> list[tuple[Any, ...]]:
        cursor.execute(statement[self._dialect], parameters)
        return cursor.fetchall()  # type: ignore[return-value]  # drivers give lists of tuples

    def _many(self, cursor: DBAPICursor, statement: Many, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run a statement over many rows; how many it changed."""
        if not rows:
            return 0
        if self._postgresql:
            columns = [list(column) for column in zip(*rows, strict=True)]
            cursor.execute(statement.post, columns)
            return int(cursor.rowcount)
        changed = start = 0
        while start < len(rows):
            # by powers of two, so that few texts are ever prepared
            count = min(_MOST_ROWS, 1 << ((len(rows) - start).bit_length() - 1))
            some = rows[start : start + count]
            cursor.execute(statement.lite(count), tuple(chain.from_iterable(some)))
            changed += cursor.rowcount
            start += count
        return changed

    def _ids(self, ids: Iterable[int]) -> Any:
        """The parameter of ``{ids}``."""
        if self._postgresql:
            return list(ids)
        return f"[{','.join(map(str, ids))}]"


def _cursor(conn: Connection) -> DBAPICursor:
    return conn.connection.cursor()
