"""Reads the records that the journal seals, in the form they are sealed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table, select

from journal.chain import Entry, digest_of
from mailweir.spool.schema import attempts, decisions, feedback

TABLES: dict[str, Table] = {"decision": decisions, "attempt": attempts, "feedback": feedback}
"""Sealed kinds. The raw bytes and the body of feedback may hold an address and are erasable, so only its
other columns are sealed."""

PREFIX = "journal:"  # of the recorder's names among the listeners, one per kind

LEFT_OUT = {"feedback": {"raw", "body", "recipient_key"}}


def columns_of(kind: str) -> list[str]:
    """The sealed columns of a kind, in order."""
    left_out = LEFT_OUT.get(kind, set())
    return [column.name for column in TABLES[kind].columns if column.name not in left_out]


_AFTER = {  # names of ours only, no values
    kind: f"SELECT {', '.join(columns_of(kind))} FROM {table.name} "  # noqa: S608
    "WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
    for kind, table in TABLES.items()
}


def after(conn: Connection, kind: str, position: int, before: int, limit: int) -> list[Entry]:
    """Records with ``position < id <= before``, in id order."""
    return [
        Entry(kind, row[0], digest_of(kind, row))
        for row in _rows(conn, _AFTER[kind], (position, before, limit))
    ]


def by_ids(conn: Connection, kind: str, ids: Sequence[int]) -> dict[int, str]:
    """Digests of the records as they are now."""
    table, names = TABLES[kind], columns_of(kind)
    query = select(*(table.c[name] for name in names)).where(table.c.id.in_(ids))
    return {int(row[0]): digest_of(kind, tuple(row)) for row in conn.execute(query)}


def _rows(conn: Connection, text: str, values: tuple[int, ...]) -> list[tuple[Any, ...]]:
    # the driver's own: SQLAlchemy's rows would cost more than reading and sealing together
    cursor = conn.connection.cursor()
    cursor.execute(text if conn.dialect.name == "sqlite" else text.replace("?", "%s"), values)
    return cursor.fetchall()  # type: ignore[return-value]  # drivers give lists of tuples
