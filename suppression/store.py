"""The suppression list in SQL: the truth. Every statement on the table is here.

Writers take one lock (:func:`lock`), so that what they project to Redis while they hold it is never
older than what another has projected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Connection, Row, and_, delete, insert, select, text, update

from mailweir.contracts.ids import new_ids
from mailweir.spool.schema import suppressions as table
from suppression.entries import Entry, Held, checked

LOCK = 0x6D77_5355  # pg_advisory_xact_lock of the list's writers
_CHUNK = 400
_COLUMNS = [table.c[name] for name in Entry.__struct_fields__]


def lock(conn: Connection) -> None:
    """Wait for the other writers of the list (PostgreSQL; SQLite has one writer anyway)."""
    if conn.dialect.name == "postgresql":
        conn.execute(text("SELECT pg_advisory_xact_lock(:k)"), {"k": LOCK})


def add(conn: Connection, entries: Iterable[Entry]) -> int:
    """Add entries or renew those with the same key and scope; how many rows are new or changed.

    A longer end wins over a shorter one, confirmed over pending; the first reason stays unless the
    entry had expired. Raises :class:`suppression.entries.BadEntry`; then nothing is added.
    """
    wanted: dict[tuple[str, str, str, str], Entry] = {}
    for entry in entries:
        entry = checked(entry)
        place = (entry.key, entry.scope, entry.tenant, entry.bucket)
        wanted[place] = _merge(wanted[place], entry) if place in wanted else entry
    there = {_place(row): row for row in _rows(conn, sorted({k[0] for k in wanted}))}
    rows, changed = [], 0
    for place, entry in wanted.items():
        row = there.get(place)
        if row is None:
            rows.append(_values(entry))
            continue
        merged = _merge(_entry(row), entry)
        if merged != _entry(row):
            conn.execute(update(table).where(table.c.id == row.id).values(**_values(merged)))
            changed += 1
    if rows:
        for row_id, values in zip(new_ids(len(rows)), rows, strict=True):
            values["id"] = row_id
        conn.execute(insert(table), rows)
    return changed + len(rows)


def remove(
    conn: Connection,
    keys: Sequence[str],
    *,
    scope: str | None = None,
    tenant: str | None = None,
    bucket: str | None = None,
    reasons: Sequence[str] = (),
) -> int:
    """Delete the entries of these keys, all or those that match; how many."""
    count = 0
    for some in _chunks(keys):
        condition = and_(table.c.key.in_(some))
        for column, value in (
            (table.c.scope, scope),
            (table.c.tenant, tenant),
            (table.c.bucket, bucket),
        ):
            if value is not None:
                condition = and_(condition, column == value)
        if reasons:
            condition = and_(condition, table.c.reason.in_(list(reasons)))
        count += conn.execute(delete(table).where(condition)).rowcount
    return count


def lookup(conn: Connection, keys: Sequence[str]) -> dict[str, list[Entry]]:
    """All entries of these keys, pending and expired ones too."""
    found: dict[str, list[Entry]] = {}
    for row in _rows(conn, keys):
        found.setdefault(row.key, []).append(_entry(row))
    return found


def held(conn: Connection, keys: Sequence[str]) -> dict[str, list[Held]]:
    """What suppresses under these keys: entries that are not pending (the asker heeds their end)."""
    found: dict[str, list[Held]] = {}
    for key, entries in lookup(conn, keys).items():
        active = [as_held(entry) for entry in entries if not entry.pending]
        if active:
            found[key] = active
    return found


def as_held(entry: Entry) -> Held:
    """The part of an entry the projection keeps."""
    return Held(entry.scope, entry.tenant, entry.bucket, entry.reason, entry.expires_at)


def every(conn: Connection, *, size: int = 5000) -> Iterator[list[Entry]]:
    """The whole list in pages ordered by key; all entries of a key are in one page."""
    after = ""
    while entries := page(conn, after, size=size):
        yield entries
        after = entries[-1].key


def page(conn: Connection, after: str, *, size: int = 5000) -> list[Entry]:
    """The entries of the next keys after this one, whole keys only; empty at the end."""
    query = select(*_COLUMNS).where(table.c.key > after).order_by(table.c.key).limit(size)
    rows = conn.execute(query).all()
    if len(rows) == size:  # the last key may have more rows beyond the page: read it whole
        last = rows[-1].key
        rows = [row for row in rows if row.key != last]
        rows += conn.execute(select(*_COLUMNS).where(table.c.key == last)).all()
    return [_entry(row) for row in rows]


def listing(
    conn: Connection,
    *,
    scope: str | None = None,
    tenant: str | None = None,
    reason: str | None = None,
    pending: bool | None = None,
    after: str = "",
    limit: int = 100,
) -> list[Entry]:
    """A page of the list by key, filtered; ``after`` is the last key of the page before."""
    query = select(*_COLUMNS).where(table.c.key > after).order_by(table.c.key).limit(limit)
    for column, value in (
        (table.c.scope, scope),
        (table.c.tenant, tenant),
        (table.c.reason, reason),
    ):
        if value is not None:
            query = query.where(column == value)
    if pending is not None:
        query = query.where(table.c.pending == pending)
    return [_entry(row) for row in conn.execute(query)]


def release(
    conn: Connection, keys: Sequence[str] | None, *, confirm: bool, before: float
) -> list[str]:
    """End the pending state of entries created before ``before``: suppress for real or drop.

    ``keys`` None means all. Returns the keys concerned.
    """
    condition = and_(table.c.pending, table.c.created_at < before)
    if keys is not None:
        condition = and_(condition, table.c.key.in_(list(keys)))
    found = list(conn.execute(select(table.c.key).where(condition).distinct()).scalars())
    if found and confirm:
        conn.execute(update(table).where(condition).values(pending=False))
    elif found:
        conn.execute(delete(table).where(condition))
    return found


def hold(conn: Connection, keys: Sequence[str], *, since: float) -> list[str]:
    """Make hard bounces of these keys, created since then, pending (the mass-bounce guard)."""
    changed: list[str] = []
    for some in _chunks(keys):
        condition = and_(
            table.c.key.in_(some), table.c.created_at >= since, table.c.reason == "hard_bounce"
        )
        changed += conn.execute(select(table.c.key).where(condition)).scalars()
        conn.execute(update(table).where(condition).values(pending=True))
    return changed


def prune(conn: Connection, now: float, limit: int = 1000) -> int:
    """Delete entries whose end has passed, at most ``limit``; how many."""
    ended = select(table.c.id).where(table.c.expires_at < now).limit(limit)
    return conn.execute(delete(table).where(table.c.id.in_(ended))).rowcount


def _merge(old: Entry, new: Entry) -> Entry:
    if old.expires_at is not None and old.expires_at <= new.created_at:
        return new
    ends = (old.expires_at, new.expires_at)
    return Entry(
        key=old.key,
        scope=old.scope,
        reason=old.reason,
        created_at=old.created_at,
        tenant=old.tenant,
        bucket=old.bucket,
        expires_at=None if None in ends else max(e for e in ends if e is not None),
        pending=old.pending and new.pending,
        source_event=old.source_event,
    )


def _rows(conn: Connection, keys: Sequence[str]) -> Iterator[Row[tuple[object, ...]]]:
    for some in _chunks(keys):
        yield from conn.execute(select(table.c.id, *_COLUMNS).where(table.c.key.in_(some)))


def _chunks(keys: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), _CHUNK):
        yield list(keys[start : start + _CHUNK])


def _place(row: Row[tuple[object, ...]]) -> tuple[str, str, str, str]:
    return (row.key, row.scope, row.tenant, row.bucket)


def _entry(row: Row[tuple[object, ...]]) -> Entry:
    return Entry(**{name: getattr(row, name) for name in Entry.__struct_fields__})


def _values(entry: Entry) -> dict[str, object]:
    return {name: getattr(entry, name) for name in Entry.__struct_fields__}
