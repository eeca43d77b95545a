"""Lost leases, lost chunks, pruning."""

from __future__ import annotations

import time

import pytest

from mailweir.contracts.lifecycle import State
from mailweir.spool.reconciling import KEEP_CHUNKS
from mailweir.spool.store import Spool
from tests.contract.spool.helpers import (
    accept,
    message,
    outcome,
    real_times,
    route,
    send,
    state_of,
    take,
)


def test_a_lost_lease_frees_uncertain_and_due(spool: Spool) -> None:
    a, b, c, d = accept(spool, 4)
    (chunk,) = route(spool)
    take(spool, chunk, lease=-1.0)
    now = time.time()
    assert spool.free(chunk.id, {a: now + 600, b: None}, [c, d], now, 3) == 4
    jobs = {i: spool.job(i) for i in (a, b, c, d)}
    found = {i: (j.state, j.due_at, j.crashes, j.attempts) for i, j in jobs.items() if j}
    assert found == {
        a: (State.UNCERTAIN, now + 600, 1, 1),
        b: (State.UNCERTAIN, None, 1, 1),
        c: (State.DUE, now, 1, 0),
        d: (State.DUE, now, 1, 0),
    }
    uncertain = jobs[a]
    assert uncertain is not None
    assert uncertain.stay_with == "ip1"  # no other source while nobody knows (N41)
    assert spool.expired_leases() == []
    assert spool.free(chunk.id, {a: now}, [c], now, 3) == 0
    assert {i for x in route(spool, now=now) for i in x.jobs} == {c, d}


def test_an_uncertain_job_is_sent_again_only_once(spool: Spool) -> None:
    """N41: also when both workers died with the content on its way, so that none wrote an outcome."""
    (a,) = accept(spool)
    (chunk,) = route(spool)
    take(spool, chunk, lease=-1.0)
    now = time.time()
    assert spool.free(chunk.id, {a: now}, [], now, 9) == 1
    (attempt,) = spool.attempts_of(a)
    assert (attempt.number, attempt.outcome, attempt.source) == (1, State.UNCERTAIN, "ip1")
    (again,) = route(spool, now=now)
    (work,) = take(spool, again, lease=-1.0)
    assert work.job.attempts == 1, "the next worker looks for uncertain attempts"
    assert spool.free(again.id, {a: now}, [], now, 9) == 1
    job = spool.job(a)
    assert job is not None
    assert (job.state, job.due_at, job.attempts) == (State.UNCERTAIN, None, 2)
    assert route(spool, now=now + 1e6) == []


def test_a_renewed_lease_is_not_freed(spool: Spool) -> None:
    (a,) = accept(spool)
    (chunk,) = route(spool)
    (work,) = take(spool, chunk, lease=-1.0)
    assert len(spool.expired_leases()) == 1
    assert spool.renew([chunk.id], "w1", 30.0) == {chunk.id}
    assert spool.free(chunk.id, {}, [a], time.time(), 3) == 0
    assert spool.turn([outcome(work, chunk)], [chunk.id]).lost == set()


def test_a_job_nobody_named_keeps_the_lease_open(spool: Spool) -> None:
    a, b = accept(spool, 2)
    (chunk,) = route(spool)
    take(spool, chunk, lease=-1.0)
    assert spool.free(chunk.id, {}, [a], time.time(), 3) == 1
    (lease,) = spool.expired_leases()
    assert lease.jobs == (b,)
    assert spool.renew([chunk.id], "w1", 30.0) == set()  # the old worker is out
    assert spool.free(chunk.id, {}, [b], time.time(), 3) == 1
    assert spool.expired_leases() == []


def test_a_poison_job_becomes_a_dead_letter(spool: Spool) -> None:
    (a,) = accept(spool)
    states = []
    for _ in range(3):
        (chunk,) = route(spool, now=time.time())
        take(spool, chunk, lease=-1.0)
        spool.free(chunk.id, {}, [a], time.time(), max_crashes=3)
        states.append(state_of(spool, a))
    assert states == [State.DUE, State.DUE, State.DEAD_LETTER]
    assert route(spool, now=time.time() + 1e6) == []
    assert spool.retry_dead_letter(a, time.time())
    assert [c.jobs for c in route(spool, now=time.time())] == [(a,)]


def test_20000_jobs_that_wait_30_minutes_are_dispatched_once(spool: Spool) -> None:
    for _ in range(20):
        spool.accept([message(*[f"u{i}@gmail.com" for i in range(1000)])])
    chunks = []
    for _ in range(25):
        chunks += route(spool, size=50, limit=2000)
    assert sum(len(c.jobs) for c in chunks) == 20_000
    # one chunk every 45 s: a slow queue, in order
    for step, chunk in enumerate(chunks[:40]):
        real_times(
            spool,
            "UPDATE chunks SET published_real = published_real - 45,"
            " taken_real = taken_real - 45, lease_real = lease_real",
        )
        assert spool.lost_chunks(15.0, {}) == [], f"after {step * 45} s"
        assert spool.redispatch(spool.lost_chunks(15.0, {}), time.time()) == 0
        send(spool, chunk)
    assert spool.window().queues == {"bulk": 18_000}
    assert spool.counts()["bulk"] == {"sent": 2000, "dispatched": 18_000}
    assert route(spool) == []


def test_a_chunk_overtaken_long_ago_is_lost(spool: Spool) -> None:
    accept(spool, 3)
    lost, later, fresh = route(spool, size=1)
    real_times(
        spool, f"UPDATE chunks SET published_real = published_real - 60 WHERE id = {lost.id}"
    )
    take(spool, later)
    assert spool.lost_chunks(15.0, {}) == []  # taken just now
    real_times(spool, "UPDATE chunks SET taken_real = taken_real - 16")
    assert spool.lost_chunks(15.0, {}) == [lost.id]  # fresh was published beside the later one
    now = time.time()
    assert spool.redispatch([lost.id], now) == 1
    assert state_of(spool, lost.jobs[0]) == State.DUE
    assert spool.lost_chunks(15.0, {}) == []
    assert spool.window().queues == {"bulk": 1}
    assert fresh.id != lost.id


def test_another_queue_proves_nothing(spool: Spool) -> None:
    accept(spool, 2)
    (waiting,) = route(spool, limit=1, queue="bulk.throttled")
    (other,) = route(spool, queue="bulk")
    real_times(spool, "UPDATE chunks SET published_real = published_real - 3600")
    real_times(spool, f"UPDATE chunks SET published_real = published_real + 9 WHERE id={other.id}")
    take(spool, other)
    real_times(spool, "UPDATE chunks SET taken_real = taken_real - 3000")
    assert spool.lost_chunks(15.0, {}) == []
    now = time.time()
    assert spool.lost_chunks(15.0, {"bulk": now - 100}) == []
    assert spool.lost_chunks(15.0, {"bulk.throttled": now - 10}) == []  # not long enough
    assert spool.lost_chunks(15.0, {"bulk.throttled": now - 16}) == [waiting.id]


def test_a_chunk_published_after_the_queue_was_seen_empty_is_not_lost(spool: Spool) -> None:
    accept(spool)
    route(spool)
    assert spool.lost_chunks(15.0, {"bulk": time.time() - 20}) == []


def test_a_taken_chunk_is_never_redispatched(spool: Spool) -> None:
    (a,) = accept(spool)
    (chunk,) = route(spool)
    take(spool, chunk)
    assert spool.redispatch([chunk.id], time.time()) == 0
    assert state_of(spool, a) == State.SENDING
    assert spool.redispatch([], time.time()) == 0


def test_prune_forgets_what_was_kept_long_enough(spool: Spool) -> None:
    old = accept(spool, 3, key="k")
    (chunk,) = route(spool)
    send(spool, chunk)
    (alive,) = accept(spool)
    now = time.time()
    day = 86400.0
    live = spool.job(alive)
    gone = spool.job(old[0])
    assert live is not None
    assert gone is not None
    assert spool.prune(now, day, 2 * day, 100) == 0
    # content goes first, for jobs that ended only
    assert spool.prune(now + day + 9, day, 2 * day, 100) == 1
    assert set(spool.contents([live.content_id, gone.content_id])) == {live.content_id}
    assert state_of(spool, old[0]) == State.SENT
    # then jobs, with what belongs to them, in steps
    assert spool.prune(now + 99 * day, day, 2 * day, 2) == 2
    assert len(spool.jobs_of(gone.message_id)) == 1
    assert spool.prune(now + 99 * day, day, 2 * day, 100) == 1
    assert spool.jobs_of(gone.message_id) == []
    assert spool.attempts_of(old[0]) == []
    assert spool.decisions_of(old[0]) == []
    assert state_of(spool, alive) == State.ACCEPTED
    with spool.database.read() as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM messages").scalar() == 1
    real_times(spool, f"UPDATE chunks SET done_real = done_real - {KEEP_CHUNKS + 1}")
    assert spool.prune(now, day, day, 100) == 1
    with spool.database.read() as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM chunks").scalar() == 0


@pytest.mark.parametrize("ended", [True, False])
def test_shared_content_stays_until_its_last_job_ended(spool: Spool, ended: bool) -> None:
    first = message("a@gmail.com")
    spool.accept([first])
    (chunk,) = route(spool)
    send(spool, chunk)
    spool.accept([message("b@gmail.com", content=first.content)])
    if ended:
        send(spool, route(spool)[0])
    spool.prune(time.time() + 100, 50, 1e9, 100)
    assert bool(spool.contents([first.content.id])) is not ended
