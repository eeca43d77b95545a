"""Reads the records that the journal seals, in the form they are sealed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def entry(kind: str, row: Mapping[str, Any]) -> Entry:
    """A record as it is sealed."""
    return Entry(kind, int(row["id"]), digest_of(kind, row))


def after(conn: Connection, kind: str, position: int, before: int, limit: int) -> list[Entry]:
    """Records with ``position < id <= before``, in id order."""
    table, names = TABLES[kind], columns_of(kind)
    query = (
        select(*(table.c[name] for name in names))
        .where(table.c.id > position, table.c.id <= before)
        .order_by(table.c.id)
        .limit(limit)
    )
    # plain rows: SQLAlchemy's mappings would cost more than reading and sealing together
    return [entry(kind, dict(zip(names, row, strict=True))) for row in conn.execute(query)]


def by_ids(conn: Connection, kind: str, ids: Sequence[int]) -> dict[int, str]:
    """Digests of the records as they are now."""
    table = TABLES[kind]
    query = select(*(table.c[name] for name in columns_of(kind))).where(table.c.id.in_(ids))
    return {int(row["id"]): digest_of(kind, dict(row)) for row in conn.execute(query).mappings()}
