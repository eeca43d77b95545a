"""What the reconciler does: free lost leases, find lost chunks, forget what was kept long enough."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor

from mailweir.contracts.events import Attempt
from mailweir.contracts.ids import new_id
from mailweir.contracts.lifecycle import State
from mailweir.spool import statements as sql
from mailweir.spool.base import Room
from mailweir.spool.records import ExpiredLease
from mailweir.spool.rows import attempt_row, orders_of

PUBLISH_SKEW = 2.0
"""Real seconds within which two routers may publish in another order than they committed. A chunk
counts as overtaken only by one committed later than that."""

KEEP_CHUNKS = 900.0
"""Real seconds a closed chunk's row is kept: the proof that later chunks were taken."""

_STEP = 100  # rows per write transaction while pruning: the write lock stays short


def _died(row: tuple[Any, ...], now: float) -> Attempt:
    """The attempt of a worker that died with the content on its way: a row of CRASHED_JOBS."""
    job_id, _, source, attempts, pool, orders, bucket, tenant = row
    return Attempt(
        id=new_id(),
        job_id=job_id,
        number=attempts + 1,
        at=now,
        source=source,
        pool=pool,
        provider=orders_of(orders, {}).provider,
        bucket=bucket,
        tenant=tenant,
        outcome=State.UNCERTAIN.value,
        stage="dot",
        reply="the worker died after the content was sent",
    )


class Reconciling(Room):
    """The operations of the reconciler."""

    def expired_leases(self, limit: int = 100) -> list[ExpiredLease]:
        """Taken chunks whose lease ran out by the database's clock."""
        with self.database.read() as conn:
            now = self.database.now_real(conn)
        chunks = self._read(sql.LEASES_EXPIRED, (now, limit))
        if not chunks:
            return []
        jobs: dict[int, list[int]] = {}
        ids = [self._ids(c[0] for c in chunks)]
        for chunk_id, job_id in self._read(sql.JOBS_SENDING_IN, ids):
            jobs.setdefault(chunk_id, []).append(job_id)
        return [ExpiredLease(c, epoch, tuple(jobs.get(c, ()))) for c, epoch in chunks]

    def free(
        self,
        chunk_id: int,
        uncertain: dict[int, float | None],
        due: Sequence[int],
        now: float,
        max_crashes: int,
    ) -> int:
        """End a lost lease: jobs marked in data become UNCERTAIN (with the given due time, or None to
        leave them) and stay with their source, the others DUE at ``now``; a job that lost
        ``max_crashes`` leases becomes a dead letter. An uncertain job's attempt is written down here,
        since its worker no longer can; one that was uncertain before has no due time: it is never
        sent a third time. How many jobs were freed.

        Nothing happens when the worker renewed the lease meanwhile. A job of the chunk named in
        neither keeps the lease open, so that the next look finds it."""

        def work(conn: Connection, cursor: DBAPICursor) -> int:
            real = self.database.now_real(conn)
            if not self._run(cursor, sql.FENCE_OFF, (chunk_id, real)):
                return 0
            rows: list[tuple[Any, ...]] = []
            died: list[tuple[Any, ...]] = []
            again = set(due)
            marked = [self._ids(uncertain)]
            before = {r[0] for r in self._rows(cursor, sql.UNCERTAIN_BEFORE, marked)}
            for row in self._rows(cursor, sql.CRASHED_JOBS, (chunk_id,)):
                job_id, crashes, source = row[:3]
                if job_id not in again and job_id not in uncertain:
                    continue
                when, stay, spent, began = None, None, 0, None
                if job_id in uncertain:
                    died.append(attempt_row(_died(row, now)))
                    when = None if job_id in before else uncertain[job_id]
                    state, reason = State.UNCERTAIN, "worker died after the content was sent"
                    stay, spent, began = source, 1, now
                else:
                    state, reason, when = State.DUE, "worker died before the content was sent", now
                if crashes + 1 >= max_crashes:
                    state, when, stay = State.DEAD_LETTER, None, None
                    reason = f"worker died {crashes + 1} times while sending it"
                ended = now if when is None else None
                rows.append((state.value, when, reason, stay, spent, began, ended, job_id))
            self._many(cursor, sql.ATTEMPTS_ADD, died)
            self._many(cursor, sql.FREE, rows)
            self._run(cursor, sql.CHUNKS_DONE, (real, self._ids([chunk_id])))
            return len(rows)

        return self._write(work)

    def lost_chunks(self, lost_after: float, empty_since: dict[str, float]) -> list[int]:
        """Untaken chunks that are provably gone, oldest first: a later chunk of the queue was taken
        over ``lost_after`` real seconds ago, or the queue has been empty that long since its
        publication (``empty_since``: queue -> real time since which every look at the broker's queue
        found it empty, nothing unacknowledged; a chunk may be lost between two looks).

        A chunk that merely waits in a slow queue is not lost, however long."""
        lost: list[int] = []
        with self.database.read() as conn:
            now = self.database.now_real(conn)
        for (queue,) in self._read(sql.QUEUES_UNTAKEN, ()):
            before: list[float] = []
            latest = self._read(sql.LATEST_TAKEN, (queue, now - lost_after))[0][0]
            if latest is not None:
                before.append(latest - PUBLISH_SKEW)
            empty = empty_since.get(queue)
            if empty is not None and empty <= now - lost_after:
                before.append(now - lost_after)
            if before:
                rows = self._read(sql.CHUNKS_UNTAKEN, (queue, max(before)))
                lost += [r[0] for r in rows]
        return sorted(lost)

    def redispatch(self, chunk_ids: Sequence[int], now: float) -> int:
        """Jobs of untaken chunks become DUE again, their chunks void; how many jobs.

        Also the router's way back when publishing failed. A chunk taken meanwhile is left alone; a
        void one that turns up later after all gives its worker nothing."""
        if not chunk_ids:
            return 0

        def work(conn: Connection, cursor: DBAPICursor) -> int:
            real = self.database.now_real(conn)
            rows = self._rows(cursor, sql.CHUNKS_GIVE_UP, (real, self._ids(chunk_ids)))
            if not rows:
                return 0
            given = self._ids(r[0] for r in rows)
            return self._run(
                cursor, sql.JOBS_DUE_AGAIN, (now, "lost on the way to a worker", given)
            )

        return self._write(work)

    def prune(self, now: float, keep_content: float, keep_jobs: float, limit: int) -> int:
        """Delete what has outlived its keeping (policy seconds after the last job ended), at most
        about ``limit`` jobs and contents, in short transactions; how many rows of jobs, contents
        and chunks."""
        deleted = 0
        deadline = now - keep_jobs
        jobs = self._read(sql.JOBS_OUTLIVED, (deadline, limit))
        for start in range(0, len(jobs), _STEP):
            deleted += self._drop_jobs(jobs[start : start + _STEP], deadline, now)
        left = limit - deleted
        if left > 0:
            until = now - keep_content
            contents = [r[0] for r in self._read(sql.CONTENTS_OUTLIVED, (until, until, left))]
            deleted += self._drop(sql.CONTENTS_DROP, contents)
        with self.database.read() as conn:
            real = self.database.now_real(conn)
        chunks = [r[0] for r in self._read(sql.CHUNKS_OUTLIVED, (real - KEEP_CHUNKS, limit))]
        return deleted + self._drop(sql.CHUNKS_DROP, chunks)

    def sweep_bodies(self) -> int:
        """Delete body files that no row names any more; how many. Raises :class:`DatabaseUnavailable`, also
        where rows name files and this process was told of no folder."""
        if self.database.bodies is None and not self._read(sql.BODIES_IN_FILES, ()):
            return 0
        with self.database.body_files() as files:
            return files.sweep(self._named, time.time())

    def _named(self, file: int) -> bool:
        return bool(self._read(sql.BODIES_NAMED, (file,)))

    def _drop_jobs(self, jobs: list[tuple[Any, ...]], deadline: float, now: float) -> int:
        ids = self._ids(r[0] for r in jobs)
        messages = self._ids({r[1] for r in jobs})

        def work(_: Connection, cursor: DBAPICursor) -> int:
            for statement in (sql.DECISIONS_DROP, sql.ATTEMPTS_DROP, sql.FEEDBACK_DROP):
                self._run(cursor, statement, [ids])
            count = self._run(cursor, sql.JOBS_DROP, (ids, deadline))
            # a message is also the memory of its idempotency key
            self._run(cursor, sql.MESSAGES_DROP, (messages, now - self.idempotency_seconds))
            return count

        return self._write(work)

    def _drop(self, statement: sql.Statement, ids: list[int]) -> int:
        steps = [ids[start : start + _STEP] for start in range(0, len(ids), _STEP)]
        return sum(self._write_one(statement, [self._ids(some)]) for some in steps)
