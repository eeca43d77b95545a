"""What a worker does: take a chunk under a lease, read contents, write outcomes under its fence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor

from mailweir.contracts.job import Content, ContentKind
from mailweir.contracts.lifecycle import State, check_move
from mailweir.contracts.route import Chunk, Orders
from mailweir.plumbing.bodies import Place
from mailweir.spool import statements as sql
from mailweir.spool.base import Room
from mailweir.spool.records import Outcome, Work, check_due
from mailweir.spool.rows import attempt_row, jobs_of, orders_of

EXPIRED_REASON = "expired: its time passed in the queue"
_KINDS = {kind.value: kind for kind in ContentKind}


@dataclass(frozen=True, slots=True)
class Taking:
    """Chunks a worker wants, for ``lease`` real seconds by the database's clock. ``epoch``: Redis' now."""

    chunks: Sequence[int]
    worker: str
    lease: float
    epoch: str | None


class Turn(NamedTuple):
    """What a turn did: chunks now ours, and jobs whose outcome was not written: no longer ours."""

    taken: set[int]
    lost: set[int]


class _NotAllOurs(Exception):
    """Some outcome's job is no longer ours; nothing was written."""


class Working(Room):
    """The operations of the workers."""

    def turn(
        self,
        outcomes: Sequence[Outcome] = (),
        done_chunks: Sequence[int] = (),
        taking: Taking | None = None,
    ) -> Turn:
        """Take chunks, write outcomes with their attempts, close finished chunks: one transaction.

        Taking moves a chunk's jobs dispatched -> sending (the chunk's row says so); those past their
        ``expires_at`` become EXPIRED. Another's chunk, or one taken before, is not ours. A chunk of which
        nothing is left is closed at once. :meth:`taken` reads the jobs.

        Outcomes are written by compare-and-set. Without an attempt the job stays with the source it
        had to keep (greylisting, uncertain); an attempt says anew. A chunk that still holds jobs is not
        closed: its lease runs out and the reconciler frees them. Raises :class:`IllegalMove` or
        :class:`ValueError` for an outcome that is none; then nothing is written."""
        for o in outcomes:
            check_move(State.SENDING, o.state)
            check_due(o.state, o.due_at)
        if not (outcomes or done_chunks or taking):
            return Turn(set(), set())

        def work(conn: Connection, cursor: DBAPICursor, ours: Sequence[Outcome]) -> set[int]:
            self._outcomes(cursor, ours)
            if not (done_chunks or taking):
                return set()
            real = self.database.now_real(conn)
            taken = self._take(cursor, taking, real) if taking else set()
            if done_chunks or taken:
                self._run(cursor, sql.CHUNKS_DONE, (real, self._ids({*done_chunks, *taken})))
            return taken

        try:
            return Turn(self._write(lambda conn, cursor: work(conn, cursor, outcomes)), set())
        except _NotAllOurs:
            pass

        def careful(conn: Connection, cursor: DBAPICursor) -> Turn:
            ours, lost = self._ours(cursor, outcomes)
            return Turn(work(conn, cursor, ours), lost)

        return self._write(careful)

    def _take(self, cursor: DBAPICursor, taking: Taking, real: float) -> set[int]:
        values = (real, real + taking.lease, taking.worker, taking.epoch, self._ids(taking.chunks))
        taken = {row[0] for row in self._rows(cursor, sql.TAKE_CHUNKS, values)}
        if taken:
            now, ids = self.clock.at(real), self._ids(taken)
            self._run(cursor, sql.TAKE_EXPIRED, (EXPIRED_REASON, now, ids, now))
        return taken

    def taken(self, chunk: Chunk) -> list[Work]:
        """The jobs of a chunk that was taken, in its order. Absent are jobs cancelled or given to another
        chunk meanwhile, and expired ones."""
        rows = self._read(sql.TAKEN, (chunk.id,))
        known: dict[str, Orders] = {}
        taken = {
            job.id: Work(job, row[21], row[22], orders_of(row[23], known), job.content_id)
            for job, row in zip(jobs_of(rows), rows, strict=True)
        }
        return [taken[i] for i in chunk.jobs if i in taken]

    def contents(self, ids: Sequence[int]) -> dict[int, Content | None]:
        """Contents by id. A pruned one is absent; None is one whose body is in a file that is not there: on
        a disk that is away, in a folder this process was not told of, or lost."""
        rows = self._read(sql.CONTENTS, [self._ids(set(ids))])
        places = {r[0]: Place(*r[4:7]) for r in rows if r[4] is not None}
        bodies: dict[Place, bytes] = {}
        if places and self.database.bodies is not None:
            with self.database.body_files() as files:
                bodies = files.read(places.values())
        found: dict[int, Content | None] = {}
        for r in rows:
            body = r[2] if r[4] is None else bodies.get(places[r[0]])
            found[r[0]] = None if body is None else Content(r[0], _KINDS[r[1]], body, r[3])
        return found

    def renew(self, chunk_ids: Sequence[int], worker: str, lease: float) -> set[int]:
        """Prolong leases by ``lease`` real seconds from now; the chunks still ours."""
        if not chunk_ids:
            return set()

        def work(conn: Connection, cursor: DBAPICursor) -> set[int]:
            until = self.database.now_real(conn) + lease
            rows = self._rows(cursor, sql.RENEW, (until, self._ids(chunk_ids), worker))
            return {r[0] for r in rows}

        return self._write(work)

    def _outcomes(self, cursor: DBAPICursor, outcomes: Sequence[Outcome]) -> None:
        """Raises :class:`_NotAllOurs`."""
        ended = self.clock.now()
        rows: list[tuple[Any, ...]] = []
        attempts: list[tuple[Any, ...]] = []
        for o in outcomes:
            a = o.attempt
            rows.append(
                (
                    o.state.value,
                    o.due_at,
                    o.reason,
                    o.stay_with,
                    0 if a is None else 1,
                    None if a is None else a.at,
                    ended if o.due_at is None else None,
                    o.job_id,
                    o.chunk_id,
                )
            )
            if a is not None:
                attempts.append(attempt_row(a))
        if self._many(cursor, sql.OUTCOME, rows) != len(rows):
            raise _NotAllOurs
        self._many(cursor, sql.ATTEMPTS_ADD, attempts)

    def _ours(
        self, cursor: DBAPICursor, outcomes: Sequence[Outcome]
    ) -> tuple[list[Outcome], set[int]]:
        """Those whose job we hold under their fence, once each; the jobs of the others."""
        ids = [self._ids(o.job_id for o in outcomes)]
        held = dict(self._rows(cursor, sql.SENDING, ids))
        ours: list[Outcome] = []
        lost: set[int] = set()
        for o in outcomes:
            if held.pop(o.job_id, None) == o.chunk_id:
                ours.append(o)
            else:
                lost.add(o.job_id)
        return ours, lost
