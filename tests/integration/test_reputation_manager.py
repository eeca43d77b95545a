"""Rows in, snapshots out: on a real Redis, over restarts, with a standby, at full rate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import prometheus_client
import pytest
import redis

from mailweir.contracts.ids import new_id
from mailweir.contracts.policy import Member, Policy, Pool, Source
from mailweir.contracts.snapshot import Snapshot
from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database
from mailweir.plumbing.events import ATTEMPT, FEEDBACK, announce
from mailweir.plumbing.settings import Settings
from mailweir.spool.schema import attempts, feedback, overrides
from reputation import publisher
from reputation.manager import Manager
from tests.contract.suppression.rows import attempt_row, complaint, feedback_row, sqlite, write

POLICY = Policy(
    sources={n: Source(n) for n in ("s1", "s2", "s3")} | {"new": Source("new", warm=False)},
    pools={"main": Pool("main", tuple(Member(n) for n in ("s1", "s2", "s3", "new")))},
)
SOFT = {"outcome": "deferred", "code": 451, "category": "reputation_block", "blame": "source"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    yield from sqlite(tmp_path)


class Hand:
    """A clock set by hand."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def clock(self) -> Clock:
        hand = self

        class _Clock(Clock):
            def now(self) -> float:
                return hand.time

        return _Clock()


def manager(
    client: redis.Redis, database: Database, hand: Hand, publish_every: float = 0.001
) -> Manager:
    quick = Settings().reputation.model_copy(update={"publish_every": publish_every})
    return Manager(client, database, lambda: POLICY, quick, hand.clock())


def settle(m: Manager, looks: int = 4) -> None:
    for _ in range(looks):
        m.step(0.0)
        while m.step(0.0):
            pass
        time.sleep(0.002)  # the bound of one snapshot per publish_every is real time


def in_force(client: redis.Redis) -> Snapshot:
    body = client.get(keys.SNAPSHOT)
    assert isinstance(body, bytes)
    return msgspec.json.decode(body, type=Snapshot)


def told(metric: str, **labels: str) -> float | None:
    """What an alert rule would see (deploy/prometheus)."""
    return prometheus_client.REGISTRY.get_sample_value(metric, labels)


def rows(n: int, at: float, **fields: object) -> list[dict[str, object]]:
    base = new_id()
    return [attempt_row(base + i, id=base + i, at=at + i * 0.01, **fields) for i in range(n)]


def test_bad_source_leaves_rotation_and_peers_stay(
    redis_clean: redis.Redis, database: Database
) -> None:
    hand = Hand()
    m = manager(redis_clean, database, hand)
    good = rows(300, hand.time, source="s2") + rows(300, hand.time, source="s3")
    bad = rows(200, hand.time, source="s1") + rows(100, hand.time, source="s1", **SOFT)
    announce(redis_clean, ATTEMPT, write(database, attempts, good + bad))
    hand.time += 60
    settle(m)
    snapshot = in_force(redis_clean)
    assert snapshot.path("s1", "gmail", "marketing").state == "suspended"
    assert snapshot.path("s1", "gmail", "marketing").weight == 0.0
    assert "delivery rate" in snapshot.path("s1", "gmail", "marketing").reasons[0]
    assert snapshot.path("s2", "gmail", "marketing").state == "warm"
    assert snapshot.path("s1", "yahoo", "marketing").state == "warm"
    assert redis_clean.get(keys.SNAPSHOT_VERSION) == str(snapshot.version).encode()
    with database.read() as conn:
        assert publisher.last(conn) == snapshot
    s1 = {"source": "s1", "provider": "gmail", "bucket": "marketing"}
    assert told("mailweir_path_out", **s1) == 1.0
    assert told("mailweir_path_slowed", **s1) == 0.0
    assert told("mailweir_path_out", **s1 | {"source": "s2"}) == 0.0
    assert told("mailweir_reputation_lag_seconds") == 0.0  # nothing waits
    redis_clean.set(keys.leader("reputation"), "another")
    m._next_lease = 0.0
    m.step(0.0)
    assert told("mailweir_reputation_leader") == 0.0
    assert told("mailweir_path_out", **s1) is None  # what it was is the new leader's to say
    m.stop()


def test_new_leader_counts_nothing_twice(redis_clean: redis.Redis, database: Database) -> None:
    hand = Hand()
    first = manager(redis_clean, database, hand)
    announce(redis_clean, ATTEMPT, write(database, attempts, rows(150, hand.time)))
    settle(first)
    first.stop()
    announce(redis_clean, ATTEMPT, write(database, attempts, rows(50, hand.time + 1)))
    second = manager(redis_clean, database, hand)
    settle(second)
    (path,) = (p for k, p in second.book.paths.items() if k.provider == "gmail")
    assert path.counters.tries == 200
    second.stop()


def test_standby_takes_over_and_the_old_leader_cannot_publish(
    redis_clean: redis.Redis, database: Database
) -> None:
    hand = Hand()
    leader, standby = manager(redis_clean, database, hand), manager(redis_clean, database, hand)
    announce(redis_clean, ATTEMPT, write(database, attempts, rows(10, hand.time)))
    settle(leader)
    version = in_force(redis_clean).version
    settle(standby, 1)
    assert in_force(redis_clean).version == version
    redis_clean.delete(keys.leader("reputation"))  # what a lease that ran out looks like
    standby._next_lease = 0.0
    settle(standby)
    with pytest.raises(publisher.NotLeader):
        leader._save()
    stale = Snapshot(99, hand.time, 0, {})
    with pytest.raises(publisher.NotLeader):
        leader._leadership.publish(stale)
    assert in_force(redis_clean).version != 99
    standby.stop()


def test_snapshot_is_restored_after_a_flush(redis_clean: redis.Redis, database: Database) -> None:
    hand = Hand()
    m = manager(redis_clean, database, hand)
    announce(redis_clean, ATTEMPT, write(database, attempts, rows(10, hand.time)))
    settle(m)
    before = in_force(redis_clean)
    redis_clean.flushall()
    m._next_lease = 0.0
    settle(m)
    after = in_force(redis_clean)
    assert after.paths.keys() == before.paths.keys()
    m.stop()


def test_operator_pause_and_cold_caps_are_published(
    redis_clean: redis.Redis, database: Database
) -> None:
    hand = Hand()
    m = manager(redis_clean, database, hand)
    announce(redis_clean, ATTEMPT, write(database, attempts, rows(20, hand.time, source="new")))
    row = {
        "subject": "source:s2",
        "action": "pause",
        "until": hand.time + 60,
        "author": "me",
        "reason": "moving",
        "at": hand.time,
    }
    with database.write() as conn:
        conn.execute(overrides.insert(), row)
    settle(m)
    snapshot = in_force(redis_clean)
    assert snapshot.paused == {"source:s2": hand.time + 60}
    cold = snapshot.path("new", "gmail", "marketing")
    assert (cold.state, cold.cap_day) == ("warming", 50)
    assert snapshot.path("new", "never-seen.example", "bulk").cap_day == 50
    hand.time += 61
    settle(m)
    assert in_force(redis_clean).paused == {}
    m.stop()


def test_complaints_reach_the_path_that_sent(redis_clean: redis.Redis, database: Database) -> None:
    hand = Hand()
    m = manager(redis_clean, database, hand)
    sent = rows(1000, hand.time, source="s1")
    write(database, attempts, sent)
    base = new_id()
    events = [
        feedback_row(complaint(int(str(r["job_id"])), f"c{i}"), id=base + i)
        for i, r in enumerate(sent[:10])
    ]
    announce(redis_clean, FEEDBACK, write(database, feedback, events))
    hand.time += 30
    settle(m)
    state = in_force(redis_clean).path("s1", "gmail", "marketing")
    assert state.score < 0.7
    assert any("complaints" in reason for reason in state.reasons)
    m.stop()


def test_folds_200000_events_a_minute(redis_clean: redis.Redis, database: Database) -> None:
    """20,000 rows in well under the 6 s that 200,000 a minute allow, publishing on the way."""
    hand = Hand()
    m = manager(redis_clean, database, hand, publish_every=1.0)
    names = [(s, p) for s in ("s1", "s2", "s3") for p in ("gmail", "yahoo", "outlook", "icloud")]
    made: list[dict[str, object]] = []
    base = new_id()
    for i in range(20_000):
        source, provider = names[i % len(names)]
        made.append(
            attempt_row(i, id=base + i, at=hand.time + i / 3333, source=source, provider=provider)
        )
    settle(m)  # the first sweep is over: what comes now comes by the stream
    ids = write(database, attempts, made)
    for start in range(0, len(ids), 32):
        announce(redis_clean, ATTEMPT, ids[start : start + 32])
    start_cpu, start_real, folded = time.process_time(), time.monotonic(), 0
    while folded < 20_000 and time.monotonic() - start_real < 30:
        folded += m.step(0.0)
    cpu = time.process_time() - start_cpu
    assert sum(p.counters.tries for p in m.book.paths.values()) == 20_000
    print(f"20,000 events folded with {cpu:.2f} s of CPU: {20_000 / cpu * 60:,.0f} a minute a core")
    assert cpu < 6.0
    m.stop()
