"""What the router does: see flows, claim due jobs, settle its decisions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection

from mailweir.contracts.job import Bucket, Job
from mailweir.contracts.lifecycle import State, check_move
from mailweir.contracts.route import Chunk
from mailweir.spool import statements as sql
from mailweir.spool.base import Room, _cursor
from mailweir.spool.records import (
    DecisionRow,
    Dispatch,
    Flow,
    Move,
    Pick,
    check_due,
    flow_key,
    is_engaged,
    parse_flow,
)
from mailweir.spool.rows import jobs_of, json_of

_decode_lanes = msgspec.json.Decoder(dict[str, int]).decode


class Window(NamedTuple):
    """Jobs on their way to a worker: per queue, and per bucket and lane."""

    queues: Mapping[str, int]
    lanes: Mapping[str, Mapping[str, int]]


class Routing(Room):
    """The operations of the router."""

    def flows(self, bucket: Bucket, now: float) -> list[Flow]:
        """Flows with a waiting job, whatever its due time, by a loose index scan.

        ``now`` (policy seconds) is not used to choose: a flow whose head is due later tells the
        router how long it may rest."""
        name = bucket.value
        with self.database.read() as conn:
            cursor = _cursor(conn)
            # mostly nothing waits: a third of the time of a recursive statement
            if self._postgresql and not self._rows(cursor, sql.WAITS, (name,)):
                return []
            found = self._rows(cursor, sql.FLOWS, (name, name))
        return [
            parse_flow(bucket, key, due)
            for key, due in found
            if due is not None  # its last job went between the two looks
        ]

    @contextmanager
    def claim(self, picks: Sequence[Pick], now: float) -> Iterator[Batch]:
        """Claim due jobs of the picked flows; two routers never dispatch the same one (SQLite:
        optimistic, settled by compare-and-set; PostgreSQL: SKIP LOCKED in one transaction, which
        ``settle`` commits). The jobs carry no ``variables``."""
        picks = [pick for pick in picks if pick.limit > 0]
        if not self._postgresql:
            yield Batch(self, self._due_jobs(picks, now), None)
            return
        with self.database.write() as conn:
            rows: list[tuple[Any, ...]] = []
            if picks:
                parameters = [
                    [pick.flow.bucket.value for pick in picks],
                    [pick.flow.key for pick in picks],
                    [pick.limit for pick in picks],
                    now,
                ]
                rows = self._rows(_cursor(conn), sql.CLAIM, parameters)
            yield Batch(self, jobs_of(rows), conn)

    def _due_jobs(self, picks: Sequence[Pick], now: float) -> list[Job]:
        rows: list[tuple[Any, ...]] = []
        with self.database.read() as conn:
            cursor = _cursor(conn)
            for pick in picks:
                parameters = (pick.flow.bucket.value, pick.flow.key, now, pick.limit)
                rows += self._rows(cursor, sql.CLAIM, parameters)
        return jobs_of(rows)

    def window(self) -> Window:
        """Jobs dispatched and not yet taken (a cancelled one counts until its chunk is taken: its place in
        the queue is still occupied)."""
        queues: dict[str, int] = defaultdict(int)
        lanes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for queue, bucket, size, text in self._read(sql.IN_WINDOW, ()):
            queues[queue] += size
            for lane, jobs in _decode_lanes(text).items():
                lanes[bucket][lane] += jobs
        return Window(queues, lanes)


class _NotAllWon(Exception):
    """Another router, or a cancel, was quicker with some job of a batch."""


class Batch:
    """Jobs a router has claimed and settles before it leaves the ``with`` block."""

    def __init__(self, spool: Routing, jobs: list[Job], conn: Connection | None) -> None:
        self.jobs = jobs
        self._spool = spool
        self._conn = conn
        self._settled = False

    def settle(
        self,
        dispatches: Sequence[Dispatch],
        moves: Sequence[Move],
        decisions: Sequence[DecisionRow],
        priorities: Mapping[int, int] | None = None,
    ) -> list[Chunk]:
        """Write everything in one transaction and commit it; the chunks to publish, without jobs
        lost to another router or a cancel. A job named nowhere stays as it was. Once per batch.

        ``priorities``: what a rule makes of a job's priority; it waits under it from now on.

        Raises :class:`IllegalMove`, or :class:`ValueError` for a job that was not claimed or a due
        time where none belongs; then nothing is written."""
        if self._settled:
            raise RuntimeError("a batch is settled once")
        self._settled = True
        seen = {job.id: job for job in self.jobs}
        _check(seen, dispatches, moves)
        flows = [
            (p, _flow_of(seen[i], p), i)
            for i, p in (priorities or {}).items()
            if seen[i].priority != p
        ]
        if self._conn is not None:  # PostgreSQL: the rows are locked since the claim, all are ours
            chunks = self._write(self._conn, dispatches, moves, decisions, set(seen), flows)
            self._conn.commit()
            return chunks
        try:
            with self._spool.database.write() as conn:
                return self._write(conn, dispatches, moves, decisions, set(seen), flows)
        except _NotAllWon:
            pass
        with self._spool.database.write() as conn:
            rows = self._spool._rows(_cursor(conn), sql.STILL_WAITING, [self._spool._ids(seen)])
            won = {i for i, state, due in rows if seen[i].state == state and seen[i].due_at == due}
            return self._write(conn, dispatches, moves, decisions, won, flows)

    def _write(
        self,
        conn: Connection,
        dispatches: Sequence[Dispatch],
        moves: Sequence[Move],
        decisions: Sequence[DecisionRow],
        won: set[int],
        flows: Sequence[tuple[int, str, int]],
    ) -> list[Chunk]:
        """Raises :class:`_NotAllWon`; what was written until then is rolled back with it."""
        due = {job.id: job.due_at for job in self.jobs}
        lanes = {job.id: job.lane for job in self.jobs}
        spool = self._spool
        cursor = _cursor(conn)
        published = spool.database.now_real(conn)
        ended = spool.clock.now()
        chunks: list[Chunk] = []
        rows: list[tuple[Any, ...]] = []
        for dispatch in dispatches:
            chunk = dispatch.chunk
            jobs = tuple([i for i in chunk.jobs if i in won])
            if not jobs:
                continue
            if len(jobs) < len(chunk.jobs):
                chunk = msgspec.structs.replace(chunk, jobs=jobs)
            chunks.append(chunk)
            texts: dict[int, str] = {}  # by identity: a batch shares its orders' objects
            for i in jobs:
                orders = dispatch.orders[i]
                text = texts.get(id(orders))
                if text is None:
                    text = texts[id(orders)] = json_of(orders)
                rows.append((chunk.id, dispatch.pool[i], chunk.source, text, i, due[i]))
        spool._many(
            cursor,
            sql.CHUNKS_ADD,
            [
                (
                    c.id,
                    c.bucket.value,
                    c.queue,
                    c.source,
                    len(c.jobs),
                    published,
                    json_of(Counter(lanes[i] for i in c.jobs)),
                )
                for c in chunks
            ],
        )
        moved: list[tuple[Any, ...]] = []
        for m in moves:
            if m.job_id in won:
                end = ended if m.due_at is None else None
                moved.append((m.state.value, m.due_at, m.reason, end, m.job_id, due[m.job_id]))
        changed = spool._many(cursor, sql.DISPATCH, rows) + spool._many(cursor, sql.MOVE, moved)
        if changed != len(rows) + len(moved):
            raise _NotAllWon
        spool._many(cursor, sql.PRIORITY, [row for row in flows if row[2] in won])
        spool._many(cursor, sql.DECISIONS_ADD, [_row(d) for d in decisions if d.job_id in won])
        return chunks


def _flow_of(job: Job, priority: int) -> str:
    return flow_key(job.lane, job.tenant, priority, engaged=is_engaged(job.bucket, job.meta))


def _check(seen: dict[int, Job], dispatches: Sequence[Dispatch], moves: Sequence[Move]) -> None:
    named: set[int] = set()
    for dispatch in dispatches:
        for i in dispatch.chunk.jobs:
            _check_one(seen, named, i, State.DISPATCHED)
    for move in moves:
        _check_one(seen, named, move.job_id, move.state)
        check_due(move.state, move.due_at)


def _check_one(seen: dict[int, Job], named: set[int], job_id: int, state: State) -> None:
    job = seen.get(job_id)
    if job is None:
        raise ValueError("a job is settled that was not claimed in this batch")
    if job_id in named:
        raise ValueError("a job is settled twice in one batch")
    named.add(job_id)
    check_move(State(job.state), state)


def _row(d: DecisionRow) -> tuple[Any, ...]:
    return (
        d.id,
        d.job_id,
        d.at,
        d.snapshot,
        d.policy_version,
        d.outcome,
        d.pool,
        d.source,
        d.queue,
        d.rule,
        d.reason,
        d.body,
    )
