"""From a row in `attempts` or `feedback` to a refused RCPT, with a real Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio

from mailweir.contracts.events import EventType, Feedback
from mailweir.contracts.ids import new_id
from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database
from mailweir.plumbing.events import ATTEMPT, FEEDBACK, Listener, announce
from mailweir.plumbing.redis import begin_epoch
from mailweir.spool.schema import attempts, feedback, jobs
from suppression import store
from suppression.entries import Entry
from suppression.guard import Ask, AsyncGuard, Guard
from suppression.listener import SuppressionListener
from suppression.projection import Projection
from tests.contract.suppression.rows import (
    HARD,
    SECRET,
    attempt_row,
    complaint,
    feedback_row,
    job_row,
    sqlite,
    write,
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    yield from sqlite(tmp_path)


@pytest.fixture
def client(redis_clean: redis.Redis) -> redis.Redis:
    begin_epoch(redis_clean, "e1")
    return redis_clean


@pytest.fixture
def running(client: redis.Redis, database: Database) -> Iterator[SuppressionListener]:
    listener = SuppressionListener(client, database, SECRET)
    stop = threading.Event()
    thread = threading.Thread(target=listener.run, args=(stop.is_set,))
    thread.start()
    deadline = time.monotonic() + 10
    while client.get(keys.SUPPRESSION_READY) is None and time.monotonic() < deadline:
        stop.wait(0.01)
    yield listener
    stop.set()
    thread.join(10)


def ask(recipient: str, tenant: str = "acme", bucket: str = "marketing", sender: str = "") -> Ask:
    return Ask(recipient, tenant, bucket, sender)


def seconds_until(guard: Guard, question: Ask, reason: str | None) -> float:
    """Real seconds until the guard gives this answer (polled: that is what a worker does)."""
    start = time.monotonic()
    while time.monotonic() - start < 10:
        if guard.check([question]) == [reason]:
            return time.monotonic() - start
        time.sleep(0.002)
    raise AssertionError(f"still {guard.check([question])} after 10 s")


def test_hard_bounce_suppresses_within_a_second(
    client: redis.Redis, database: Database, running: SuppressionListener
) -> None:
    guard = Guard(client, database, SECRET)
    job = job_row("Gone@Example.com")
    write(database, jobs, [job])
    assert guard.check([ask("gone@example.com")]) == [None]
    ids = write(database, attempts, [attempt_row(job["id"], **HARD)])
    announce(client, ATTEMPT, ids)
    assert seconds_until(guard, ask("GONE@example.com.", tenant="other"), "hard_bounce") < 1.0


def test_complaint_while_5000_jobs_wait_stops_them_all(
    client: redis.Redis, database: Database, running: SuppressionListener
) -> None:
    """R22: whoever asks a second later is told no, however many jobs of that address wait."""
    base = new_id()
    waiting = [job_row("angry@example.com", state="due", id=base + i) for i in range(5000)]
    write(database, jobs, waiting)
    ids = write(database, feedback, [feedback_row(complaint(waiting[0]["id"]))])
    announce(client, FEEDBACK, ids)
    committed = time.monotonic()
    guard = Guard(client, database, SECRET)
    let_through = 0
    for start in range(0, 5000, 50):
        asked_at = time.monotonic()
        answers = guard.check([ask("angry@example.com")] * 50)
        if asked_at - committed > 1.0:
            let_through += sum(a is None for a in answers)
        if start == 0:
            seconds_until(guard, ask("angry@example.com"), "complaint")
    assert time.monotonic() - committed < 30
    assert let_through == 0
    assert guard.check([ask("angry@example.com")] * 5000) == ["complaint"] * 5000
    assert guard.check([ask("angry@example.com", tenant="other")]) == [None]


def test_lost_announcement_is_found_by_the_sweep(
    client: redis.Redis, database: Database, running: SuppressionListener
) -> None:
    guard = Guard(client, database, SECRET)
    job = job_row("quiet@example.com")
    write(database, jobs, [job])
    write(database, attempts, [attempt_row(job["id"], **HARD)])
    assert seconds_until(guard, ask("quiet@example.com"), "hard_bounce") < 5.0


def test_flushed_redis_never_forgets_an_address(
    client: redis.Redis, database: Database, running: SuppressionListener
) -> None:
    guard = Guard(client, database, SECRET)
    with Projection(client, database, SECRET).adding(["x@example.com"]) as conn:
        store.add(conn, [Entry("x@example.com", "global", "manual", 1.0)])
    assert guard.check([ask("x@example.com")]) == ["manual"]
    client.flushall()
    assert guard.check([ask("x@example.com")]) == ["manual"]  # asked in SQL
    begin_epoch(client, "e2")
    deadline = time.monotonic() + 10
    while client.get(keys.SUPPRESSION_READY) != b"e2" and time.monotonic() < deadline:
        assert guard.check([ask("x@example.com")]) == ["manual"]
        time.sleep(0.01)
    assert client.hlen(keys.SUPPRESSION) == 1
    assert guard.check([ask("x@example.com")]) == ["manual"]


def test_no_address_is_in_redis(
    client: redis.Redis, database: Database, running: SuppressionListener
) -> None:
    with Projection(client, database, SECRET).adding(["who@secret.example"]) as conn:
        store.add(conn, [Entry("who@secret.example", "global", "manual", 1.0)])
    dump = b"".join(k + v for k, v in client.hgetall(keys.SUPPRESSION).items())
    assert dump
    assert b"secret" not in dump
    assert b"who" not in dump


def test_without_redis_sql_answers(database: Database, tmp_path: Path) -> None:
    nowhere = redis.Redis(unix_socket_path=str(tmp_path / "none.sock"))
    with database.write() as conn:
        store.add(conn, [Entry("x@example.com", "global", "manual", 1.0)])
    guard = Guard(nowhere, database, SECRET)
    assert guard.check([ask("x@example.com"), ask("y@example.com")]) == ["manual", None]


async def test_async_guard_agrees(client: redis.Redis, database: Database, redis_url: str) -> None:
    projection = Projection(client, database, SECRET)
    projection.rebuild()
    touched = ["x@example.com", "@gone.example", "news@acme.test>z@example.com"]
    with projection.adding(touched) as conn:
        store.add(
            conn,
            [
                Entry("x@example.com", "bucket", "unsubscribe", 1.0, "acme", "bulk"),
                Entry("@gone.example", "global", "invalid_domain", 1.0),
                Entry("news@acme.test>z@example.com", "global", "recipient_refused", 1.0),
            ],
        )
    questions = [
        ask("x@example.com", bucket="bulk"),
        ask("x@example.com", bucket="transactional"),
        ask("any@gone.example"),
        ask("z@example.com", sender="News@acme.test"),
        ask("z@example.com", sender="other@acme.test"),
        ask("not an address"),
    ]
    expected = ["unsubscribe", None, "invalid_domain", "recipient_refused", None, "malformed"]
    async with redis.asyncio.Redis.from_url(redis_url) as other:
        assert await AsyncGuard(other, database, SECRET).check(questions) == expected
    assert Guard(client, database, SECRET).check(questions) == expected


def test_removal_is_projected(client: redis.Redis, database: Database) -> None:
    projection = Projection(client, database, SECRET)
    projection.rebuild()
    with projection.adding(["x@example.com"]) as conn:
        store.add(conn, [Entry("x@example.com", "global", "manual", 1.0)])
    with projection.removing(["x@example.com"]) as conn:
        assert store.remove(conn, ["x@example.com"]) == 1
    assert Guard(client, database, SECRET).check([ask("x@example.com")]) == [None]
    assert client.hlen(keys.SUPPRESSION) == 0


def test_a_projection_nobody_keeps_is_not_trusted(client: redis.Redis, database: Database) -> None:
    Projection(client, database, SECRET).rebuild()
    with database.write() as conn:  # written while Redis could not be reached
        store.add(conn, [Entry("x@example.com", "global", "manual", 1.0)])
    assert 0 < client.ttl(keys.SUPPRESSION_READY) <= 15
    client.delete(keys.SUPPRESSION_READY)  # what the end of its time does
    assert Guard(client, database, SECRET).check([ask("x@example.com")]) == ["manual"]


def test_unsubscribe_subscribe_and_delivered(client: redis.Redis, database: Database) -> None:
    listener = SuppressionListener(client, database, SECRET)
    guard = Guard(client, database, SECRET)
    job = job_row("r@example.com")
    write(database, jobs, [job])

    def happens(kind: EventType, name: str) -> None:
        event = Feedback(name, kind, "test", 1000.0, job_id=job["id"])
        announce(client, FEEDBACK, write(database, feedback, [feedback_row(event)]))
        for _ in range(5):
            listener.step()

    happens(EventType.UNSUBSCRIBED, "u")
    marketing, receipt = ask("r@example.com"), ask("r@example.com", bucket="transactional")
    assert guard.check([marketing, receipt]) == ["unsubscribe", None]
    happens(EventType.SUBSCRIBED, "s")
    assert guard.check([marketing]) == [None]
    full = attempt_row(
        job["id"],
        outcome="bounced",
        category="mailbox_full",
        suppress="recipient:30",
        at=time.time(),
    )
    announce(client, ATTEMPT, write(database, attempts, [full]))
    for _ in range(5):
        listener.step()
    assert guard.check([marketing]) == ["soft_bounce"]
    happens(EventType.DELIVERED, "d")
    assert guard.check([marketing]) == [None]


def test_directory_outage_keeps_bounces_pending(client: redis.Redis, database: Database) -> None:
    """2.1 (4): a provider that suddenly knows nobody suppresses nobody."""
    clock = Clock()
    now = clock.now()
    listener = SuppressionListener(client, database, SECRET, clock)
    base = new_id()
    people = [job_row(f"p{i}@gmail.com", id=base + i) for i in range(600)]
    write(database, jobs, people)
    calm = [
        attempt_row(job["id"], id=base + i, at=now - 700 + i) for i, job in enumerate(people[:300])
    ]
    storm = [
        attempt_row(job["id"], id=base + 300 + i, at=now - 60 + i * 0.1, **HARD)
        for i, job in enumerate(people[300:])
    ]
    write(database, attempts, calm + storm)
    while listener.step():
        pass
    guard = Guard(client, database, SECRET)
    answers = guard.check([ask(str(job["recipient"])) for job in people])
    assert answers == [None] * 600
    with database.read() as conn:
        assert len(store.listing(conn, pending=True, limit=1000)) == 300


def test_a_listener_gives_every_row_once_over_restarts(
    client: redis.Redis, database: Database
) -> None:
    given: list[int] = []
    written: list[int] = []
    base = new_id()
    for round_ in range(6):
        listener = Listener(client, database, "test")
        rows = [attempt_row(1, id=base + round_ * 1000 - k * 7) for k in range(50)]
        ids = write(database, attempts, rows)
        written += ids
        announce(client, ATTEMPT, ids if round_ % 2 else ids[:20])
        for _ in range(4):
            given += [row.id for row in listener.poll(0.0).attempts]
        announce(client, ATTEMPT, ids)  # the same news twice
        given += [row.id for row in listener.poll(0.0).attempts]
        with database.write() as conn:
            listener.commit(conn)
    assert sorted(given) == sorted(set(written))


def test_a_mailbox_full_for_a_week_and_an_address_that_stays_silent(
    client: redis.Redis, database: Database
) -> None:
    day, now = 86400.0, time.time()
    full = {"outcome": "deferred", "category": "mailbox_full", "blame": "recipient"}
    for name, days in (("stuffed", (8.0, 6.0, 4.0, 2.0, 0.0)), ("busy", (3.0, 2.0, 1.0, 0.5, 0.0))):
        (job,) = write(database, jobs, [job_row(f"{name}@gmail.com")])
        write(database, attempts, [attempt_row(job, at=now - d * day, **full) for d in days])
    for name, ended in (("silent", (6.0, 3.0, 0.0)), ("outage", (0.2, 0.1, 0.0))):
        address = f"{name}@gmail.com"
        rows = [job_row(address, state="expired", ended_at=now - d * day) for d in ended]
        write(database, jobs, rows)
    listener = SuppressionListener(client, database, SECRET)
    for _ in range(5):
        listener.step()
    names = ("stuffed", "busy", "silent", "outage")
    guard = Guard(client, database, SECRET)
    said = guard.check([ask(f"{name}@gmail.com") for name in names])
    assert said == ["soft_bounce", None, "soft_bounce", None]
    with database.read() as conn:
        (entry,) = store.lookup(conn, ["stuffed@gmail.com"])["stuffed@gmail.com"]
    assert entry.expires_at == pytest.approx(now + 30 * day, abs=1)
