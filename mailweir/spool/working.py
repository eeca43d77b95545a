"""What a worker does: take a chunk under a lease, read contents, write outcomes under its fence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor

from mailweir.contracts.job import Content, ContentKind
from mailweir.contracts.lifecycle import State, check_move
from mailweir.contracts.route import Chunk, Orders
from mailweir.spool import statements as sql
from mailweir.spool.base import Room
from mailweir.spool.records import Outcome, Work, check_due
from mailweir.spool.rows import attempt_row, jobs_of, orders_of

EXPIRED_REASON = "expired: its time passed in the queue"
_KINDS = {kind.value: kind for kind in ContentKind}


class Working(Room):
    """The operations of the workers."""

    def take(self, chunk: Chunk, worker: str, lease: float, epoch: str | None) -> list[Work]:
        """Move the chunk's jobs dispatched -> sending under a lease (real seconds, database clock)
        and return those that may be sent, in the chunk's order.

        Absent are jobs cancelled or given to another chunk meanwhile, and those past their
        ``expires_at``, which become EXPIRED. Taking a chunk twice returns nothing the second time.
        A chunk of which nothing is left is closed at once."""
        rows = self._write(
            lambda conn, cursor: self._take(conn, cursor, chunk, worker, lease, epoch)
        )
        known: dict[str, Orders] = {}
        taken = {
            job.id: Work(job, row[20], row[21], orders_of(row[22], known), job.content_id)
            for job, row in zip(jobs_of(rows), rows, strict=True)
        }
        return [taken[i] for i in chunk.jobs if i in taken]

    def _take(
        self,
        conn: Connection,
        cursor: DBAPICursor,
        chunk: Chunk,
        worker: str,
        lease: float,
        epoch: str | None,
    ) -> list[tuple[Any, ...]]:
        real = self.database.now_real(conn)
        if not self._run(cursor, sql.TAKE_CHUNK, (real, real + lease, worker, epoch, chunk.id)):
            return []
        now = self.clock.at(real)
        self._run(cursor, sql.TAKE_EXPIRED, (EXPIRED_REASON, now, chunk.id, now))
        rows = self._rows(cursor, sql.TAKE_JOBS, (chunk.id,))
        if not rows:
            self._run(cursor, sql.CHUNKS_DONE, (real, self._ids([chunk.id])))
        return rows

    def contents(self, ids: Sequence[int]) -> dict[int, Content]:
        """Contents by id; a pruned one is absent."""
        rows = self._read(sql.CONTENTS, [self._ids(set(ids))])
        return {r[0]: Content(r[0], _KINDS[r[1]], r[2], r[3]) for r in rows}

    def renew(self, chunk_ids: Sequence[int], worker: str, lease: float) -> set[int]:
        """Prolong leases by ``lease`` real seconds from now; the chunks still ours."""
        if not chunk_ids:
            return set()

        def work(conn: Connection, cursor: DBAPICursor) -> set[int]:
            until = self.database.now_real(conn) + lease
            rows = self._rows(cursor, sql.RENEW, (until, self._ids(chunk_ids), worker))
            return {r[0] for r in rows}

        return self._write(work)

    def outcomes(self, outcomes: Sequence[Outcome], done_chunks: Sequence[int] = ()) -> set[int]:
        """Write outcomes and attempts by compare-and-set in one transaction, close finished chunks;
        the ids of jobs that were no longer ours (nothing was written for them).

        Without an attempt the job stays with the source it had to keep (greylisting, uncertain);
        an attempt says anew. A chunk that still holds jobs is not closed: its lease runs out and
        the reconciler frees them. Raises :class:`IllegalMove` or :class:`ValueError` for an
        outcome that is none; then nothing is written."""
        for o in outcomes:
            check_move(State.SENDING, o.state)
            check_due(o.state, o.due_at)
        if not outcomes and not done_chunks:
            return set()
        return self._write(lambda conn, cursor: self._outcomes(conn, cursor, outcomes, done_chunks))

    def _outcomes(
        self,
        conn: Connection,
        cursor: DBAPICursor,
        outcomes: Sequence[Outcome],
        done_chunks: Sequence[int],
    ) -> set[int]:
        ended = self.clock.now()
        ids = [self._ids(o.job_id for o in outcomes)]
        held = {r[0]: (r[1], r[2]) for r in self._rows(cursor, sql.SENDING, ids)}
        rows: list[tuple[Any, ...]] = []
        attempts: list[tuple[Any, ...]] = []
        stale: set[int] = set()
        for o in outcomes:
            fence, stays = held.pop(o.job_id, (None, None))
            if fence != o.chunk_id:
                stale.add(o.job_id)
                continue
            a = o.attempt
            rows.append(
                (
                    o.state.value,
                    o.due_at,
                    o.reason,
                    o.stay_with or (stays if a is None else None),
                    0 if a is None else 1,
                    None if a is None else a.at,
                    ended if o.due_at is None else None,
                    o.job_id,
                )
            )
            if a is not None:
                attempts.append(attempt_row(a))
        self._many(cursor, sql.OUTCOME, rows)
        self._many(cursor, sql.ATTEMPTS_ADD, attempts)
        if done_chunks:
            real = self.database.now_real(conn)
            self._run(cursor, sql.CHUNKS_DONE, (real, self._ids(done_chunks)))
        return stale
