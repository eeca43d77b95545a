"""Changes by hand: one entry or a million from CSV, audited, projected as they are committed."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import IO, NamedTuple

import msgspec
from sqlalchemy import Connection, insert

from mailweir.contracts.ids import new_id
from mailweir.plumbing.database import Database
from mailweir.spool.schema import audit
from suppression import store
from suppression.entries import BadEntry, Entry, Reason, Scope, checked, key_of
from suppression.projection import Projection

COLUMNS = ("address", "scope", "tenant", "bucket", "reason", "created_at", "expires_at", "pending")
BATCH = 500  # rows per transaction: doors wait no longer than some 20 ms for it
BAD_ROWS_KEPT = 1000


class BadRow(NamedTuple):
    """A line that was not imported, and why (never the address itself)."""

    line: int
    why: str


class Imported(NamedTuple):
    """What became of a file."""

    rows: int
    changed: int
    bad: int
    bad_rows: tuple[BadRow, ...]  # the first BAD_ROWS_KEPT of them


def add_by_hand(
    projection: Projection, entries: list[Entry], *, author: str, why: str, now: float
) -> int:
    """Add entries, with an audit row each; how many were new or changed. Raises BadEntry."""
    touched = [entry.key for entry in entries]
    with projection.adding(touched) as conn:
        changed = store.add(conn, entries)
        for entry in entries:
            body = {"scope": entry.scope, "tenant": entry.tenant, "bucket": entry.bucket}
            _audit(conn, author, "suppress.add", entry.key, why, now, body)
    return changed


def remove_by_hand(
    projection: Projection,
    subjects: list[str],
    *,
    scope: str | None = None,
    tenant: str | None = None,
    bucket: str | None = None,
    author: str,
    why: str,
    now: float,
) -> int:
    """Remove entries, with an audit row per address; how many. Raises BadEntry."""
    keys = [key_of(subject) for subject in subjects]
    with projection.removing(keys) as conn:
        removed = store.remove(conn, keys, scope=scope, tenant=tenant, bucket=bucket)
        for key in keys if removed else ():
            body = {"scope": scope or "", "tenant": tenant or "", "bucket": bucket or ""}
            _audit(conn, author, "suppress.remove", key, why, now, body)
    return removed


def decide_pending(
    projection: Projection, *, confirm: bool, author: str, why: str, now: float
) -> int:
    """An operator ends the mass-bounce guard's wait: suppress for real, or forget; how many addresses."""
    touched: list[str] = []
    with projection.removing(touched) as conn:
        touched += store.release(conn, None, confirm=confirm, before=now + 1.0)
        action = "suppress.confirm" if confirm else "suppress.forget"
        _audit(conn, author, action, f"{len(touched)} pending", why, now, {})
    return len(touched)


def import_csv(
    projection: Projection,
    file: IO[str],
    *,
    author: str,
    why: str,
    now: float,
    defaults: Entry,
    progress: Callable[[int], None] = lambda rows: None,
) -> Imported:
    """Import a CSV with a header line; only ``address`` is needed, ``defaults`` fill the rest.

    Good rows are kept whatever is wrong with others; what was committed stays if the import is broken
    off, and importing the file again changes nothing more. Raises BadEntry when the header is unknown.
    """
    bad: list[BadRow] = []
    total = changed = wrong = 0
    rows = _rows(file, defaults)
    while batch := list(islice(rows, BATCH)):
        entries: list[Entry] = []
        for row in batch:
            total += 1
            if isinstance(row, Entry):
                entries.append(row)
                continue
            wrong += 1
            if len(bad) < BAD_ROWS_KEPT:
                bad.append(row)
        if entries:
            with projection.adding([entry.key for entry in entries]) as conn:
                changed += store.add(conn, entries)
        progress(total)
    with projection.adding([]) as conn:
        body = {"rows": str(total), "changed": str(changed), "bad": str(wrong)}
        _audit(conn, author, "suppress.import", f"{total} rows", why, now, body)
    return Imported(total, changed, wrong, tuple(bad))


def export_csv(database: Database, file: IO[str], progress: Callable[[int], None]) -> int:
    """Write the whole list as CSV that :func:`import_csv` reads; how many rows."""
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    count = 0
    with database.read() as conn:
        for page in store.every(conn):
            for e in page:
                times = (_iso(e.created_at), "" if e.expires_at is None else _iso(e.expires_at))
                writer.writerow(
                    (e.key, e.scope, e.tenant, e.bucket, e.reason, *times, "1" if e.pending else "")
                )
            count += len(page)
            progress(count)
    return count


def _rows(file: IO[str], defaults: Entry) -> Iterator[Entry | BadRow]:
    reader = csv.reader(file)
    header = [name.strip().lower().lstrip("﻿") for name in next(reader, [])]
    names = {"email": "address", "recipient": "address", "created": "created_at"}
    header = [names.get(name, name) for name in header]
    unknown = [name for name in header if name not in COLUMNS]
    if "address" not in header or unknown:
        raise BadEntry(
            f"the first line names the columns; needed: address; known: {', '.join(COLUMNS)}"
            + (f"; not known: {', '.join(unknown)}" if unknown else "")
        )
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        try:
            if len(cells) != len(header):
                raise BadEntry(f"{len(cells)} columns where the header has {len(header)}")
            fields = dict(zip(header, (cell.strip() for cell in cells), strict=True))
            yield _entry(fields, defaults)
        except BadEntry as error:
            yield BadRow(reader.line_num, str(error))


def _entry(fields: dict[str, str], defaults: Entry) -> Entry:
    scope = fields.get("scope") or defaults.scope
    return checked(
        Entry(
            key=key_of(fields["address"]),
            scope=scope,
            reason=fields.get("reason") or defaults.reason,
            created_at=parse_time(fields.get("created_at", ""), "created_at")
            or defaults.created_at,
            tenant="" if scope == Scope.GLOBAL else fields.get("tenant") or defaults.tenant,
            bucket=(fields.get("bucket") or defaults.bucket) if scope == Scope.BUCKET else "",
            expires_at=parse_time(fields.get("expires_at", ""), "expires_at")
            or defaults.expires_at,
            pending=fields.get("pending", "").lower() in ("1", "true", "yes"),
            source_event="import",
        )
    )


def parse_time(text: str, field: str) -> float | None:
    """Unix seconds or ISO 8601 (UTC unless it says otherwise); None for an empty text. Raises BadEntry."""
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise BadEntry(f"{field}: neither Unix seconds nor ISO 8601") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _audit(
    conn: Connection,
    author: str,
    action: str,
    subject: str,
    why: str,
    now: float,
    body: dict[str, str],
) -> None:
    conn.execute(
        insert(audit).values(
            id=new_id(),
            at=now,
            author=author[:128],
            action=action,
            subject=subject[:320],
            reason=why,
            body=msgspec.json.encode({k: v for k, v in body.items() if v}).decode(),
        )
    )


def default_entry(now: float) -> Entry:
    """What a CSV row says when it says nothing."""
    return Entry("", Scope.GLOBAL, Reason.IMPORTED, now)
