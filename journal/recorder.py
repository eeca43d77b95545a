"""Seals new records: one row of the journal per segment, so sealing costs little beside sending.

Ids are made shortly before their rows are committed, so records become sealable when their id is some
seconds old; what is committed even later is found by a sweep over the last minutes and sealed then.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import structlog
from sqlalchemy import Connection, func, insert, select

from journal.audit import close
from journal.chain import GENESIS, Entry, link, segment_digest
from journal.records import PREFIX, TABLES, after
from mailweir.contracts.ids import new_id
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database, DatabaseUnavailable
from mailweir.plumbing.events import put
from mailweir.spool.schema import journal, positions

log = structlog.get_logger(__name__)

SETTLED = 5.0  # real seconds after which a record's neighbours are taken to be committed
SWEEP_EVERY = 60.0  # real seconds between two looks for records that came later than that
SWEEP_BACK = 600.0  # real seconds such a look reaches back
CLOSE_EVERY = 3600.0  # real seconds between two looks for segments that outlived their keeping
SEGMENT = 500  # records sealed together at most
PAUSE = 1.0  # real seconds between looks when nothing is new


class Recorder:
    """The only writer of the journal; run it in one process at a time (the leader's)."""

    def __init__(self, database: Database, clock: Clock, keep_jobs: float) -> None:
        """``keep_jobs``: policy seconds after which records may be pruned (``spool.keep_jobs``)."""
        self._keep = clock.real(keep_jobs)
        self._next_close = time.monotonic() + CLOSE_EVERY
        self._database = database
        self._clock = clock
        self._next_sweep = time.monotonic() + SWEEP_EVERY

    def run(self, stop: Callable[[], bool]) -> None:
        """Seal until ``stop()``; a database that is away is waited for."""
        while not stop():
            try:
                count = self.turn(time.time()) or self._close(time.time())
            except DatabaseUnavailable as error:
                log.warning("journal waits for the database", why=str(error))
                count = 0
            if not count:
                time.sleep(PAUSE)

    def turn(self, real: float) -> int:
        """Seal one segment of what is settled at ``real`` (Unix seconds); how many records."""
        settled = new_id(real - SETTLED, 0)
        with self._database.read() as conn:
            marks = self._positions(conn)
            entries = [
                entry
                for kind in TABLES
                for entry in after(conn, kind, marks.get(kind, 0), settled, SEGMENT)
            ]
            if not entries and time.monotonic() >= self._next_sweep:
                self._next_sweep = time.monotonic() + SWEEP_EVERY
                entries = self._late(conn, marks, real)
        if not entries:
            return 0
        with self._database.write() as conn:
            self._seal(conn, entries, marks)
        return len(entries)

    def _close(self, real: float) -> int:
        """Once in a while drop what old segments list."""
        if time.monotonic() < self._next_close:
            return 0
        count = close(self._database, real, self._keep)
        if not count:
            self._next_close = time.monotonic() + CLOSE_EVERY
        return count

    def _late(self, conn: Connection, marks: dict[str, int], real: float) -> list[Entry]:
        since = new_id(real - SWEEP_BACK, 0)
        bodies = conn.execute(
            select(journal.c.body).where(journal.c.at >= self._clock.at(real - 2 * SWEEP_BACK))
        )
        sealed = {
            (entry.kind, entry.ref)
            for (body,) in bodies
            for entry in msgspec.json.decode(body, type=list[Entry])
        }
        return [
            entry
            for kind in TABLES
            for entry in after(conn, kind, since, marks.get(kind, 0), 100_000)
            if (entry.kind, entry.ref) not in sealed
        ][:SEGMENT]

    def _seal(self, conn: Connection, entries: list[Entry], marks: dict[str, int]) -> None:
        head = conn.execute(
            select(journal.c.seq, journal.c.chain).order_by(journal.c.seq.desc()).limit(1)
        ).one_or_none()
        number, before = (int(head.seq) + 1, bytes(head.chain)) if head else (1, GENESIS)
        digest = segment_digest(entries)
        now = self._clock.now()
        conn.execute(
            insert(journal).values(
                seq=number,
                at=now,
                kind="segment",
                ref=entries[0].ref,
                digest=digest,
                chain=link(before, digest),
                body=msgspec.json.encode(entries).decode(),
            )
        )
        for entry in entries:
            marks[entry.kind] = max(marks.get(entry.kind, 0), entry.ref)
        for kind, ref in marks.items():
            put(conn, positions, "listener", PREFIX + kind, position=str(ref), updated_at=now)

    @staticmethod
    def _positions(conn: Connection) -> dict[str, int]:
        rows = conn.execute(
            select(positions.c.listener, positions.c.position).where(
                positions.c.listener.in_([PREFIX + kind for kind in TABLES])
            )
        )
        return {name.removeprefix(PREFIX): int(position) for name, position in rows}


def sealed_until(database: Database) -> int:
    """Number of the last segment; 0 before the first."""
    with database.read() as conn:
        return int(conn.execute(select(func.max(journal.c.seq))).scalar() or 0)
