"""Cancel, dead letters, what later reports say, and every read."""

from __future__ import annotations

import threading
import time

import pytest

from mailweir.contracts.events import EventType, Feedback
from mailweir.contracts.ids import new_id
from mailweir.contracts.job import Bucket
from mailweir.contracts.lifecycle import IllegalMove, Mark, State
from mailweir.spool.rows import json_of
from mailweir.spool.store import Backlog, Outcome, Spool
from tests.contract.spool.helpers import (
    accept,
    message,
    outcome,
    route,
    send,
    settle_moves,
    state_of,
    take,
)


def _uncertain(spool: Spool) -> int:
    (a,) = accept(spool)
    (chunk,) = route(spool)
    take(spool, chunk)
    spool.turn([Outcome(a, chunk.id, State.UNCERTAIN, None, "reset after dot")], [chunk.id])
    return a


def test_cancel_by_job_message_campaign_and_tenant(spool: Spool) -> None:
    now = time.time()
    spring = message("a@gmail.com", "b@gmail.com", campaign="spring")
    other = message("c@gmail.com", campaign="spring", tenant="b")
    plain = message("d@gmail.com")
    spool.accept([spring, other, plain])
    assert spool.cancel(now, job=spring.jobs[0].id, tenant="b") == 0  # not b's job
    assert spool.cancel(now, job=spring.jobs[0].id) == 1
    assert spool.cancel(now, campaign="spring", tenant="acme") == 1
    assert state_of(spool, other.jobs[0].id) == State.ACCEPTED
    assert spool.cancel(now, message=other.id) == 1
    assert spool.cancel(now, tenant="acme") == 1
    assert spool.cancel(now, tenant="acme") == 0
    with pytest.raises(ValueError, match="needs"):
        spool.cancel(now)
    assert spool.counts() == {"bulk": {"cancelled": 4}}


def test_cancel_takes_dispatched_and_leaves_sending_and_ended(spool: Spool) -> None:
    ids = accept(spool, 250)
    first, second, third = route(spool, size=100)
    send(spool, first)
    take(spool, second)
    assert spool.cancel(time.time(), tenant="acme") == 50
    assert take(spool, third) == []
    assert spool.counts() == {"bulk": {"sent": 100, "sending": 100, "cancelled": 50}}
    assert len(ids) == 250


def test_cancel_and_take_race_without_a_job_in_both(spool: Spool) -> None:
    accept(spool, 300)
    chunks = route(spool, size=10)
    taken: list[int] = []
    start = threading.Barrier(2)

    def worker() -> None:
        start.wait(30)
        for chunk in chunks:
            taken.extend(w.job.id for w in take(spool, chunk))

    thread = threading.Thread(target=worker)
    thread.start()
    start.wait(30)
    cancelled = spool.cancel(time.time(), tenant="acme")
    thread.join(60)
    assert cancelled + len(taken) == 300
    counts = spool.counts()["bulk"]
    assert counts.get("cancelled", 0) == cancelled
    assert counts.get("sending", 0) == len(taken)


def test_a_report_resolves_an_uncertain_job_once(spool: Spool) -> None:
    a = _uncertain(spool)
    now = time.time()
    with pytest.raises(ValueError, match="resolve"):
        spool.resolve_uncertain(a, State.DUE, now)
    assert spool.resolve_uncertain(a, State.SENT, now, "DSN: delivered")
    assert state_of(spool, a) == State.SENT
    assert not spool.resolve_uncertain(a, State.BOUNCED, now)
    assert state_of(spool, a) == State.SENT


def test_a_late_dsn_overrules_the_250(spool: Spool) -> None:
    (a,) = accept(spool)
    assert not spool.bounce_sent(a, "too early", time.time())
    send(spool, route(spool)[0])
    assert spool.bounce_sent(a, "550 5.1.1", time.time())
    job = spool.job(a)
    assert job is not None
    assert (job.state, job.reason) == (State.BOUNCED, "550 5.1.1")
    assert not spool.bounce_sent(a, "again", time.time())


def test_marks_accumulate(spool: Spool) -> None:
    (a,) = accept(spool)
    send(spool, route(spool)[0])
    assert spool.add_mark(a, Mark.OPENED)
    assert spool.add_mark(a, Mark.DELIVERED)
    assert not spool.add_mark(a, Mark.OPENED)
    assert not spool.add_mark(new_id(), Mark.OPENED)
    where = spool.whereabouts(a)
    assert where is not None
    assert set(where.marks) == {Mark.OPENED, Mark.DELIVERED}
    assert where.ended_at is not None
    assert spool.whereabouts(new_id()) is None


def test_feedback_and_what_follows_share_a_transaction(spool: Spool) -> None:
    a = _uncertain(spool)

    class Stop(Exception):
        pass

    def intake() -> None:
        with spool.database.write() as conn:
            assert spool.resolve_uncertain(a, State.BOUNCED, time.time(), "dsn", conn=conn)
            assert spool.add_mark(a, Mark.COMPLAINED, conn=conn)
            raise Stop

    with pytest.raises(Stop):
        intake()
    assert state_of(spool, a) == State.UNCERTAIN
    with spool.database.write() as conn:
        spool.resolve_uncertain(a, State.BOUNCED, time.time(), "dsn", conn=conn)
    assert state_of(spool, a) == State.BOUNCED


def test_dead_letters_are_tried_again_or_buried(spool: Spool) -> None:
    (a,) = accept(spool)
    assert not spool.retry_dead_letter(a, time.time())
    settle_moves(spool, State.DEAD_LETTER, None)
    assert spool.retry_dead_letter(a, time.time())
    assert state_of(spool, a) == State.DUE
    settle_moves(spool, State.DEAD_LETTER, None)
    assert spool.bury_dead_letter(a, time.time())
    assert state_of(spool, a) == State.CANCELLED


def test_an_end_has_no_way_back(spool: Spool) -> None:
    (a,) = accept(spool)
    send(spool, route(spool)[0])
    with pytest.raises(IllegalMove):
        spool._resolve(a, State.SENT, State.DUE, time.time(), None, None)


def test_counts_and_waiting(spool: Spool) -> None:
    now = time.time()
    spool.accept(
        [
            message("a@gmail.com", send_at=now - 9),
            message("b@gmail.com", send_at=now - 3),
            message("c@gmail.com", send_at=now + 50),
            message("d@gmail.com", bucket=Bucket.TRANSACTIONAL),
        ]
    )
    assert spool.waiting(Bucket.BULK, now) == Backlog(2, 1, now - 9)
    assert spool.waiting(Bucket.MARKETING) == Backlog(0, 0, None)
    assert spool.counts() == {"bulk": {"accepted": 3}, "transactional": {"accepted": 1}}
    send(spool, route(spool)[0])
    assert spool.counts() == {
        "bulk": {"accepted": 1, "sent": 2},
        "transactional": {"accepted": 1},
    }
    assert spool.counts(ended_since=now + 1000)["bulk"] == {"accepted": 1}


def test_search_meets_every_condition_newest_first(spool: Spool) -> None:
    messages = [message("a@gmail.com", campaign="c1" if i % 2 else None) for i in range(6)]
    messages.append(message("a@gmail.com", tenant="b", campaign="c1"))
    for m in messages:
        spool.accept([m])
    ids = [m.jobs[0].id for m in messages]
    newest = sorted(ids, reverse=True)
    assert [j.id for j in spool.search(recipient="a@gmail.com")] == newest
    assert [j.id for j in spool.search()] == newest
    assert {j.id for j in spool.search(campaign="c1")} == {ids[1], ids[3], ids[5], ids[6]}
    assert [j.id for j in spool.search(campaign="c1", tenant="b")] == [ids[6]]
    assert len(spool.search(tenant="acme", state=State.ACCEPTED, limit=4)) == 4
    assert spool.search(tenant="acme", state=State.SENT) == []
    page = spool.search(limit=3)
    rest = spool.search(limit=100, before=page[-1].id)
    assert [j.id for j in page + rest] == newest
    assert spool.search(recipient="nobody@gmail.com") == []


def test_a_timeline_tells_decisions_attempts_and_feedback(spool: Spool) -> None:
    (a,) = accept(spool)
    send(spool, route(spool)[0])
    event = Feedback("ev1", EventType.COMPLAINED, "arf", time.time(), job_id=a, category="abuse")
    mark = "%s" if spool.database.dialect_name == "postgresql" else "?"
    with spool.database.write() as conn:
        conn.exec_driver_sql(
            "INSERT INTO feedback (id, event_id, job_id, type, provider, occurred_at, received_at,"
            f" body) VALUES ({', '.join([mark] * 8)})",
            (new_id(), "ev1", a, "complained", "arf", 1.0, 2.0, json_of(event)),
        )
    assert spool.feedback_of(a) == [event]
    assert [d.outcome for d in spool.decisions_of(a)] == ["routed"]
    assert [x.outcome for x in spool.attempts_of(a)] == ["sent"]
    assert spool.job(new_id()) is None


def test_recounts(spool: Spool) -> None:
    now = time.time()
    spool.accept([message("A@gmail.com"), message("b@gmail.com"), message("c@gmail.com")])
    (chunk,) = route(spool)
    works = take(spool, chunk)
    spool.turn([outcome(w, chunk) for w in works], [chunk.id])
    times = spool.recipient_attempts(now - 1, now)
    assert set(times) == {"a@gmail.com", "b@gmail.com", "c@gmail.com"}
    assert all(len(t) == 1 for t in times.values())
    spool.accept([message("d@gmail.com"), message("e@gmail.com"), message("f@gmail.com")])
    sending, dispatched = route(spool, limit=1), route(spool, limit=1)
    take(spool, sending[0])
    on_the_way = [spool.job(chunk.jobs[0]) for chunk in (*sending, *dispatched)]
    times = spool.recipient_attempts(now + 1000, now + 2000)
    assert times == {
        job.recipient_key: {job.id: now + 2000} for job in on_the_way if job is not None
    }
    assert len(times) == 2, "one is being sent, one dispatched; the third was not routed"
    every = spool.attempts_since(now - 1)
    assert len(every) == 3
    assert spool.attempts_since(every[0].at, every[0].id) == every[1:]
    assert spool.attempts_since(now - 1, limit=2) == every[:2]
    by_id = sorted(every, key=lambda a: a.id)
    assert spool.attempts_after(0) == by_id
    assert spool.attempts_after(by_id[1].id) == by_id[2:]
    assert spool.attempts([by_id[0].id, by_id[2].id, 5]) == [by_id[0], by_id[2]]
