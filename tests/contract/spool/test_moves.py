"""Every move of the lifecycle's table, made by the operation that is meant to make it."""

from __future__ import annotations

import time

import pytest

from mailweir.contracts.lifecycle import MOVES, WAITING, State
from mailweir.contracts.route import Chunk
from mailweir.spool.store import Outcome, Spool
from tests.contract.spool.conftest import moves_seen
from tests.contract.spool.helpers import accept, attempt, route, send, settle_moves, state_of, take

S = State

# The table allows it for an operator's tool; no operation of the spool makes it.
NOBODY = {(S.DISPATCHED, S.DEAD_LETTER)}

PAIRS = sorted((old, new) for old in MOVES for new in MOVES[old] if (old, new) not in NOBODY)


def _reach(spool: Spool, state: State) -> tuple[int, Chunk | None]:
    """A job in ``state`` and, in flight, its chunk."""
    (job_id,) = accept(spool)
    past = time.time() - 0.5
    if state is S.ACCEPTED:
        return job_id, None
    if state in (S.HELD, S.REFUSED, S.EXPIRED, S.DEAD_LETTER):
        settle_moves(spool, state, past if state is S.HELD else None)
        return job_id, None
    if state is S.CANCELLED:
        spool.cancel(time.time(), job=job_id)
        return job_id, None
    (chunk,) = route(spool)
    if state is S.DUE:
        spool.redispatch([chunk.id], past)
    elif state is S.SENT:
        send(spool, chunk)
    elif state is not S.DISPATCHED:
        (work,) = take(spool, chunk, lease=-1.0)
        if state is not S.SENDING:
            due = past if state in WAITING else None
            o = Outcome(job_id, chunk.id, state, due, "r", None, attempt(work, state.value))
            assert spool.turn([o], [chunk.id]).lost == set()
    return job_id, chunk


def _move(spool: Spool, job_id: int, chunk: Chunk | None, old: State, new: State) -> None:
    now = time.time()
    if new is S.CANCELLED:
        if old is S.DEAD_LETTER:
            assert spool.bury_dead_letter(job_id, now)
        else:
            assert spool.cancel(now, job=job_id) == 1
    elif old is S.DEAD_LETTER:
        assert spool.retry_dead_letter(job_id, now)
    elif old is S.SENT:
        assert spool.bounce_sent(job_id, "dsn", now)
    elif old is S.UNCERTAIN and new in (S.SENT, S.BOUNCED, S.REFUSED):
        assert spool.resolve_uncertain(job_id, new, now, "dsn")
    elif old is S.SENDING:
        assert chunk is not None
        if new is S.DEAD_LETTER:
            assert spool.free(chunk.id, {}, [job_id], now, 1) == 1
        else:
            o = Outcome(job_id, chunk.id, new, now if new in WAITING else None, "r")
            assert spool.turn([o]).lost == set()
    elif old is S.DISPATCHED:
        assert chunk is not None
        if new is S.DUE:
            assert spool.redispatch([chunk.id], now) == 1
        else:
            if new is S.EXPIRED:
                with spool.database.write() as conn:
                    conn.exec_driver_sql(f"UPDATE jobs SET expires_at = {now} WHERE id = {job_id}")
            take(spool, chunk)
    elif new is S.DISPATCHED:
        assert [c.jobs for c in route(spool)] == [(job_id,)]
    else:
        settle_moves(spool, new, now + 9 if new is S.HELD else None)


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_move(spool: Spool, old: State, new: State) -> None:
    job_id, chunk = _reach(spool, old)
    assert state_of(spool, job_id) == old
    _move(spool, job_id, chunk, old, new)
    assert state_of(spool, job_id) == new
    if old != new:
        assert (old, new) in moves_seen(spool.database)


@pytest.mark.parametrize("state", [s for s in S if s not in WAITING])
def test_only_waiting_jobs_are_claimed(spool: Spool, state: State) -> None:
    _reach(spool, state)
    assert route(spool, now=time.time() + 1e7) == []
