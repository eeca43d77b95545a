"""Take, renew, outcomes: under a fence and a lease, one by one."""

from __future__ import annotations

import time

import msgspec
import pytest

from mailweir.contracts.events import Suppress
from mailweir.contracts.ids import new_id
from mailweir.contracts.lifecycle import IllegalMove, State
from mailweir.spool.store import Outcome, Spool
from tests.contract.spool.helpers import (
    accept,
    attempt,
    outcome,
    real_times,
    route,
    state_of,
    take,
)


def test_take_gives_the_jobs_once(spool: Spool) -> None:
    ids = accept(spool, 3)
    (chunk,) = route(spool)
    works = take(spool, chunk)
    assert [w.job.id for w in works] == list(chunk.jobs)
    assert set(ids) == set(chunk.jobs)
    assert {w.job.state for w in works} == {State.SENDING}
    assert take(spool, chunk) == []
    assert take(spool, chunk, worker="w2") == []


def test_take_leaves_out_cancelled_expired_and_rerouted_jobs(spool: Spool) -> None:
    now = time.time()
    (kept,) = accept(spool)
    (cancelled,) = accept(spool)
    (late,) = accept(spool, expires_at=now + 0.001)
    (chunk,) = route(spool, now=now)
    assert spool.cancel(now, job=cancelled) == 1
    while time.time() <= now + 0.01:
        pass
    assert [w.job.id for w in take(spool, chunk)] == [kept]
    assert state_of(spool, cancelled) == State.CANCELLED
    expired = spool.job(late)
    assert expired is not None
    assert expired.state == State.EXPIRED
    assert expired.reason

    (again,) = accept(spool)
    (first,) = route(spool)
    assert spool.redispatch([first.id], time.time()) == 1
    (second,) = route(spool, now=time.time())
    assert take(spool, first) == []  # it turned up after all
    assert [w.job.id for w in take(spool, second)] == [again]


def test_a_chunk_of_which_nothing_is_left_is_closed(spool: Spool) -> None:
    accept(spool)
    (chunk,) = route(spool)
    spool.cancel(time.time(), tenant="acme")
    assert take(spool, chunk, lease=-1.0) == []
    assert spool.expired_leases() == []


def test_an_outcome_and_its_attempt_are_true_together(spool: Spool) -> None:
    (a,) = accept(spool)
    (chunk,) = route(spool)
    (work,) = take(spool, chunk)
    due = time.time() + 300
    full = msgspec.structs.replace(
        attempt(work, "deferred"),
        host="mx1.gmail.com", stage="rcpt", code=451, enhanced="4.7.1", reply="451 greylisted ü",
        category="greylisted", blame="source", layer="source",
        suppress=Suppress("recipient", 180), conversation='["220 hi"]',
    )  # fmt: skip
    o = Outcome(a, chunk.id, State.DEFERRED, due, "greylisted", "ip1", full)
    assert spool.turn([o], [chunk.id]).lost == set()
    job = spool.job(a)
    assert job is not None
    assert (job.state, job.due_at, job.reason) == (State.DEFERRED, due, "greylisted")
    assert (job.attempts, job.stay_with, job.first_attempt_at) == (1, "ip1", full.at)
    assert spool.attempts_of(a) == [full]
    assert route(spool) == []
    (second,) = route(spool, now=due)
    (work,) = take(spool, second)
    assert work.job.stay_with == "ip1"
    assert spool.turn([outcome(work, second)], [second.id]).lost == set()
    job = spool.job(a)
    assert job is not None
    assert (job.state, job.due_at, job.stay_with) == (State.SENT, None, None)
    assert (job.attempts, job.first_attempt_at) == (2, full.at)
    assert [x.number for x in spool.attempts_of(a)] == [1, 2]


def test_attempts_grow_only_with_an_attempt(spool: Spool) -> None:
    a, b = accept(spool, 2)
    (chunk,) = route(spool)
    take(spool, chunk)
    now = time.time()
    held = Outcome(a, chunk.id, State.HELD, now + 5, "no token")
    back = Outcome(b, chunk.id, State.DUE, now, "worker stops")
    assert spool.turn([held, back], [chunk.id]).lost == set()
    for i in (a, b):
        job = spool.job(i)
        assert job is not None
        assert (job.attempts, job.first_attempt_at) == (0, None)
        assert spool.attempts_of(i) == []


def test_waiting_for_a_token_does_not_forget_the_source_of_a_greylisting(spool: Spool) -> None:
    (a,) = accept(spool)
    (first,) = route(spool)
    (work,) = take(spool, first)
    due = time.time()
    tried = attempt(work, "deferred")
    spool.turn([Outcome(a, first.id, State.DEFERRED, due, "451", "ip1", tried)], [first.id])
    (second,) = route(spool, now=due)
    take(spool, second)
    spool.turn([Outcome(a, second.id, State.HELD, due, "no token")], [second.id])
    job = spool.job(a)
    assert job is not None
    assert (job.state, job.stay_with) == (State.HELD, "ip1")


def test_a_stale_worker_writes_nothing_and_learns_which(spool: Spool) -> None:
    a, b = accept(spool, 2)
    (old,) = route(spool)
    first = {w.job.id: w for w in take(spool, old, lease=-1.0)}
    assert spool.turn([outcome(first[b], old)]).lost == set()
    assert spool.free(old.id, {}, [a], time.time(), 3) == 1
    (new,) = route(spool, now=time.time())
    second = take(spool, new, worker="w2")
    stale = outcome(first[a], old, State.BOUNCED)
    assert spool.turn([stale, outcome(first[b], old)], [old.id]).lost == {a, b}
    assert state_of(spool, a) == State.SENDING
    assert spool.attempts_of(a) == []
    assert len(spool.attempts_of(b)) == 1
    assert spool.turn([outcome(second[0], new)], [new.id]).lost == set()
    assert state_of(spool, a) == State.SENT


def test_the_same_job_twice_in_one_call_counts_once(spool: Spool) -> None:
    (a,) = accept(spool)
    (chunk,) = route(spool)
    (work,) = take(spool, chunk)
    both = [outcome(work, chunk), outcome(work, chunk, State.BOUNCED)]
    assert spool.turn(both).lost == {a}
    assert state_of(spool, a) == State.SENT
    assert len(spool.attempts_of(a)) == 1


@pytest.mark.parametrize(
    ("state", "due", "error"),
    [
        (State.DISPATCHED, None, IllegalMove),
        (State.CANCELLED, None, IllegalMove),
        (State.DEFERRED, None, ValueError),
        (State.SENT, 5.0, ValueError),
    ],
)
def test_an_outcome_that_is_none_is_refused_whole(
    spool: Spool, state: State, due: float | None, error: type[Exception]
) -> None:
    accept(spool, 2)
    (chunk,) = route(spool)
    one, two = take(spool, chunk)
    with pytest.raises(error):
        spool.turn([outcome(one, chunk), outcome(two, chunk, state, due)])
    assert state_of(spool, one.job.id) == State.SENDING


def test_a_chunk_that_holds_jobs_is_not_closed(spool: Spool) -> None:
    accept(spool, 2)
    (chunk,) = route(spool)
    one, two = take(spool, chunk, lease=-1.0)
    spool.turn([outcome(one, chunk)], [chunk.id])
    (lease,) = spool.expired_leases()
    assert (lease.chunk_id, lease.epoch, lease.jobs) == (chunk.id, "epoch1", (two.job.id,))
    spool.turn([outcome(two, chunk)], [chunk.id])
    assert spool.expired_leases() == []
    assert spool.window().queues == {}


def test_renew_prolongs_what_is_ours(spool: Spool) -> None:
    accept(spool, 2)
    one, two = route(spool, size=1)
    take(spool, one, lease=-5.0, worker="w1")
    take(spool, two, lease=-5.0, worker="w2")
    assert {x.chunk_id for x in spool.expired_leases()} == {one.id, two.id}
    assert spool.renew([one.id, two.id, new_id()], "w1", 30.0) == {one.id}
    assert [x.chunk_id for x in spool.expired_leases()] == [two.id]
    real_times(spool, "UPDATE chunks SET lease_real = lease_real - 31")
    assert len(spool.expired_leases()) == 2
    assert len(spool.expired_leases(limit=1)) == 1
    assert spool.renew([], "w1", 30.0) == set()


def test_done_chunks_are_not_renewed(spool: Spool) -> None:
    accept(spool)
    (chunk,) = route(spool)
    (work,) = take(spool, chunk)
    spool.turn([outcome(work, chunk)], [chunk.id])
    assert spool.renew([chunk.id], "w1", 30.0) == set()


def test_unknown_contents_are_absent(spool: Spool) -> None:
    assert spool.contents([new_id()]) == {}
    assert spool.contents([]) == {}
    assert spool.turn([]).lost == set()
