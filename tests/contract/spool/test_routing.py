"""Flows, claim, settle: a job is dispatched by one router, once, and none is lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from mailweir.contracts.job import Bucket
from mailweir.contracts.lifecycle import IllegalMove, State
from mailweir.contracts.route import Chunk
from mailweir.spool.store import Flow, Move, Pick, Spool
from tests.contract.spool.conftest import only_postgresql, only_sqlite
from tests.contract.spool.helpers import (
    ORDERS,
    accept,
    decision,
    dispatch,
    message,
    route,
    send,
    settle_moves,
    state_of,
    take,
)


def test_flows_name_every_lane_tenant_and_priority(spool: Spool) -> None:
    now = time.time()
    spool.accept(
        [
            message("a@gmail.com", send_at=now - 5),
            message("b@gmail.com", send_at=now - 9),
            message("c@gmail.com", tenant="t|2", send_at=now + 60),
            message("d@y.com", lane="yahoo", priority=1, send_at=now),
            message("e@y.com", bucket=Bucket.TRANSACTIONAL),
        ]
    )
    assert set(spool.flows(Bucket.BULK, now)) == {
        Flow(Bucket.BULK, "gmail", "acme", 5, now - 9),
        Flow(Bucket.BULK, "gmail", "t|2", 5, now + 60),
        Flow(Bucket.BULK, "yahoo", "acme", 1, now),
    }
    assert spool.flows(Bucket.MARKETING, now) == []


def test_claim_gives_due_jobs_in_due_order_up_to_the_limit(spool: Spool) -> None:
    now = time.time()
    messages = [message(f"u{i}@gmail.com", send_at=now - 10 + i) for i in range(20)]
    spool.accept(messages)
    (flow,) = spool.flows(Bucket.BULK, now)
    with spool.claim([Pick(flow, 4)], now) as batch:
        assert [j.id for j in batch.jobs] == [m.jobs[0].id for m in messages[:4]]
        assert batch.jobs[0].meta == messages[0].meta
        assert batch.jobs[0].variables is None
    with spool.claim([Pick(flow, 100)], now) as batch:
        assert len(batch.jobs) == 11  # the rest is due later
    with spool.claim([Pick(flow, 0)], now) as batch:
        assert batch.jobs == []


def test_settle_writes_dispatch_moves_and_decisions_together(spool: Spool) -> None:
    now = time.time()
    a, b, c, d = accept(spool, 4)
    (flow,) = spool.flows(Bucket.BULK, now)
    with spool.claim([Pick(flow, 10)], now) as batch:
        chunks = batch.settle(
            [dispatch([a])],
            [
                Move(b, State.HELD, now + 60, "cap of ip1 reached"),
                Move(c, State.REFUSED, None, "suppressed"),
            ],
            [decision(a), decision(b, "held"), decision(c, "refused")],
        )
    assert [chunk.jobs for chunk in chunks] == [(a,)]
    held, refused = spool.job(b), spool.job(c)
    assert held is not None
    assert refused is not None
    assert (held.state, held.due_at, held.reason) == (State.HELD, now + 60, "cap of ip1 reached")
    assert (refused.state, refused.due_at, refused.reason) == (State.REFUSED, None, "suppressed")
    assert state_of(spool, a) == State.DISPATCHED
    assert state_of(spool, d) == State.ACCEPTED  # named nowhere: stays as it was
    assert [row.outcome for row in spool.decisions_of(b)] == ["held"]
    (row,) = spool.decisions_of(a)
    assert (row.snapshot, row.policy_version, row.source) == ("7.2", 3, "ip1")
    where = spool.whereabouts(a)
    assert where is not None
    assert (where.pool, where.source, where.chunk_id) == ("main", "ip1", chunks[0].id)
    assert spool.window().queues == {"bulk": 1}


def test_nothing_is_written_when_settle_refuses(spool: Spool) -> None:
    (a,) = accept(spool)
    now = time.time()
    picks = [Pick(flow, 10) for flow in spool.flows(Bucket.BULK, now)]
    bad = [
        ([], [Move(a, State.SENT, None, "no")], IllegalMove),
        ([], [Move(a, State.HELD, None, "no due time")], ValueError),
        ([], [Move(a, State.REFUSED, now, "due time")], ValueError),
        ([dispatch([a])], [Move(a, State.HELD, now, "twice")], ValueError),
        ([dispatch([a + 1])], [], ValueError),
    ]
    for dispatches, moves, error in bad:
        with spool.claim(picks, now) as batch, pytest.raises(error):
            batch.settle(dispatches, moves, [decision(a)])
    assert state_of(spool, a) == State.ACCEPTED
    assert spool.decisions_of(a) == []
    with spool.claim(picks, now) as batch:
        batch.settle([], [], [])
        with pytest.raises(RuntimeError):
            batch.settle([], [], [])


def test_an_exception_in_the_block_leaves_the_jobs_waiting(spool: Spool) -> None:
    (a,) = accept(spool)
    picks = [Pick(flow, 10) for flow in spool.flows(Bucket.BULK, time.time())]

    class Died(Exception):
        pass

    with pytest.raises(Died), spool.claim(picks, time.time()):
        raise Died
    assert [c.jobs for c in route(spool)] == [(a,)]


def test_settled_is_committed_while_the_block_still_runs(spool: Spool) -> None:
    accept(spool)
    picks = [Pick(flow, 10) for flow in spool.flows(Bucket.BULK, time.time())]
    with spool.claim(picks, time.time()) as batch:
        (chunk,) = batch.settle([dispatch([batch.jobs[0].id])], [], [])
        assert len(take(spool, chunk)) == 1  # a worker may be faster than the router


def test_two_routers_never_dispatch_a_job_twice(spool: Spool) -> None:
    ids = set(accept(spool, 600))
    chunks: list[Chunk] = []
    lock = threading.Lock()
    start = threading.Barrier(4)

    def router() -> None:
        start.wait(30)
        while spool.flows(Bucket.BULK, time.time()):
            mine = route(spool, size=7, limit=25)
            with lock:
                chunks.extend(mine)

    threads = [threading.Thread(target=router) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    dispatched = Counter(i for chunk in chunks for i in chunk.jobs)
    assert set(dispatched) == ids
    assert set(dispatched.values()) == {1}
    taken = Counter(w.job.id for chunk in chunks for w in take(spool, chunk))
    assert taken == dispatched
    assert all(len(spool.decisions_of(i)) == 1 for i in list(ids)[:50])


@only_sqlite
def test_a_chunk_is_published_without_a_job_cancelled_meanwhile(spool: Spool) -> None:
    a, b = accept(spool, 2)
    now = time.time()
    picks = [Pick(flow, 10) for flow in spool.flows(Bucket.BULK, now)]
    with spool.claim(picks, now) as batch:
        assert spool.cancel(now, job=a) == 1
        (chunk,) = batch.settle([dispatch([a, b])], [], [decision(a), decision(b)])
    assert chunk.jobs == (b,)
    assert spool.decisions_of(a) == []
    with spool.claim(picks, now) as batch:
        assert batch.jobs == []


@only_postgresql
def test_a_cancel_waits_for_the_router_that_claimed_and_still_comes_in_time(spool: Spool) -> None:
    a, b = accept(spool, 2)
    now = time.time()
    picks = [Pick(flow, 10) for flow in spool.flows(Bucket.BULK, now)]
    with ThreadPoolExecutor(1) as pool:
        with spool.claim(picks, now) as batch:
            cancelled = pool.submit(spool.cancel, now, job=a)
            (chunk,) = batch.settle([dispatch([a, b])], [], [decision(a), decision(b)])
        assert cancelled.result(30) == 1
    assert [w.job.id for w in take(spool, chunk)] == [b]


def test_a_held_job_comes_back_at_its_time(spool: Spool) -> None:
    (a,) = accept(spool)
    later = time.time() + 100
    settle_moves(spool, State.HELD, later)
    assert route(spool, now=later - 1) == []
    assert [c.jobs for c in route(spool, now=later)] == [(a,)]
    job = spool.job(a)
    assert job is not None
    assert job.due_at is None
    assert job.reason is None


def test_orders_travel_with_the_job(spool: Spool) -> None:
    accept(spool)
    (chunk,) = route(spool)
    (work,) = take(spool, chunk)
    assert work.orders == ORDERS
    assert (work.pool, work.source) == ("main", "ip1")
    assert work.job.variables == {"name": "Zoë"}


def test_the_window_counts_untaken_jobs_per_queue(spool: Spool) -> None:
    accept(spool, 5)
    first = route(spool, limit=2, queue="bulk")
    route(spool, queue="bulk.throttled")
    accept(spool, 1, lane="yahoo")
    route(spool, queue="bulk")
    assert spool.window().queues == {"bulk": 3, "bulk.throttled": 3}
    assert spool.window().lanes == {"bulk": {"gmail": 5, "yahoo": 1}}
    send(spool, first[0])
    assert spool.window().queues == {"bulk": 1, "bulk.throttled": 3}
    assert spool.window().lanes == {"bulk": {"gmail": 3, "yahoo": 1}}
