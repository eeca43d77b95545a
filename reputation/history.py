"""The book in SQL: saved with the position of what was folded, so that a new leader goes on exactly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, insert, select

from mailweir.plumbing.database import Database
from mailweir.spool.schema import counters as table
from reputation.policy.book import Book, Path, PathKey
from reputation.policy.history import Habits
from reputation.policy.outage import Watch
from reputation.policy.warmup import Warming

PATH, WARM, HABITS, WATCH = "path:", "warm:", "habits:", "symptoms:"
PLACEMENT, LISTED, FAULTS = "placement:", "listed:", "faults:"

_path = msgspec.json.Decoder(Path).decode
_warm = msgspec.json.Decoder(Warming).decode
_habits = msgspec.json.Decoder(Habits).decode
_watch = msgspec.json.Decoder(Watch).decode


def save(conn: Connection, book: Book, now: float) -> int:
    """Write what changed since the last save; how many rows. The book counts as saved only when
    :func:`saved` is called after the commit."""
    rows: dict[str, str | None] = {}
    for key in book.dirty:
        path = book.paths.get(key)
        rows[f"{PATH}{key}"] = None if path is None else msgspec.json.encode(path).decode()
    if book.dirty:
        for (source, provider), warming in book.warm.items():
            rows[f"{WARM}{source}|{provider}"] = msgspec.json.encode(warming).decode()
        for provider in {key.provider for key in book.dirty} & book.habits.keys():
            rows[f"{HABITS}{provider}"] = msgspec.json.encode(book.habits[provider]).decode()
    for provider in {key.provider for key in book.dirty} & book.watches.keys():
        rows[f"{WATCH}{provider}"] = msgspec.json.encode(book.watches[provider]).decode()
    names = list(rows)
    for start in range(0, len(names), 400):
        conn.execute(delete(table).where(table.c.key.in_(names[start : start + 400])))
    values = [
        {"key": name, "body": body, "updated_at": now}
        for name, body in rows.items()
        if body is not None
    ]
    if values:
        conn.execute(insert(table), values)
    return len(rows)


def saved(book: Book) -> None:
    """The save was committed."""
    book.dirty.clear()


def restore(database: Database, book: Book) -> None:
    """Read the saved state into an empty book."""
    with database.read() as conn:
        rows = conn.execute(select(table.c.key, table.c.body)).all()
    for key, body in rows:
        if key.startswith(PATH):
            book.paths[PathKey(*key.removeprefix(PATH).split("|"))] = _path(body)
        elif key.startswith(WARM):
            source, provider = key.removeprefix(WARM).split("|")
            book.warm[(source, provider)] = _warm(body)
        elif key.startswith(HABITS):
            book.habits[key.removeprefix(HABITS)] = _habits(body)
        elif key.startswith(WATCH):
            book.watches[key.removeprefix(WATCH)] = _watch(body)
    read_signals(rows, book)


def read_signals(rows: Iterable[Any], book: Book) -> None:
    """Seed-inbox placement, blocklistings and faults of own addresses, written by their own intake (see
    reputation.signals)."""
    placement: dict[tuple[str, str], float] = {}
    listed: dict[str, str] = {}
    faults: dict[str, tuple[str, ...]] = {}
    for key, body in rows:
        if key.startswith(PLACEMENT):
            source, provider = key.removeprefix(PLACEMENT).split("|")
            placement[(source, provider)] = float(body)
        elif key.startswith(LISTED):
            listed[key.removeprefix(LISTED)] = msgspec.json.decode(body, type=str)
        elif key.startswith(FAULTS):
            faults[key.removeprefix(FAULTS)] = msgspec.json.decode(body, type=tuple[str, ...])
    book.placement, book.listed, book.faults = placement, listed, faults


def refresh_signals(database: Database, book: Book) -> None:
    """Read placement and listings again."""
    with database.read() as conn:
        rows = conn.execute(
            select(table.c.key, table.c.body).where(
                table.c.key.startswith(PLACEMENT)
                | table.c.key.startswith(LISTED)
                | table.c.key.startswith(FAULTS)
            )
        ).all()
    read_signals(rows, book)
