"""S22: under pressure transactional goes before marketing before bulk, engaged recipients first, and nobody
starves; what has workers and sources of its own waits for nobody."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import redis

from mailweir.contracts.heartbeat import Heartbeat
from mailweir.contracts.job import Bucket, JobMeta
from mailweir.plumbing import keys
from router.loop import Loop
from tests.integration.router_rig import Rig

POLICY = """
sources:
  tx-1: {buckets: [transactional]}
  a-1: {buckets: [marketing, bulk]}
pools:
  tx: {sources: [tx-1]}
  a: {sources: [a-1]}
rules:
  - name: transactional
    match: {bucket: transactional}
    action: {pool: tx}
  - name: rest
    action: {pool: a}
providers:
  gmail: {rate: 1200/min}
buckets:
  transactional: {recipient_limit: none}
  marketing: {recipient_limit: none}
  bulk: {recipient_limit: none}
"""
ENGAGED = JobMeta(engagement="high")


def announce(client: redis.Redis, *fleets: tuple[str, ...]) -> None:
    """Workers of these queues live."""
    for number, queues in enumerate(fleets):
        beat = msgspec.json.encode(Heartbeat(at=time.time(), queues=queues))
        client.hset(keys.WORKERS, f"w{number}", beat)


def take(rig: Rig, queues: tuple[str, ...]) -> Counter[str]:
    """Take the oldest chunk of each queue that has one, as Celery's workers go round; jobs per queue."""
    taken: Counter[str] = Counter()
    with rig.spool.database.write() as conn:
        for queue in queues:
            row = conn.exec_driver_sql(
                "SELECT id, size FROM chunks WHERE queue = ? AND taken_real IS NULL"
                " AND done_real IS NULL ORDER BY id LIMIT 1",
                (queue,),
            ).one_or_none()
            if row is not None:
                conn.exec_driver_sql("UPDATE chunks SET taken_real = 1 WHERE id = ?", (row.id,))
                taken[queue] += row.size
    return taken


def work(rig: Rig, loop: Loop, queues: tuple[str, ...], rounds: int) -> Counter[str]:
    """Workers and router in turn; the jobs taken per queue after a while."""
    taken: Counter[str] = Counter()
    for number in range(rounds + 10):
        loop.turn()
        got = take(rig, queues)
        taken += got if number >= 10 else Counter()
    return taken


@pytest.mark.parametrize(
    ("first", "second"), [("transactional", "marketing"), ("marketing", "bulk")]
)
def test_the_better_bucket_goes_first_where_workers_are_short(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis, first: str, second: str
) -> None:
    rig = Rig.build(tmp_path, redis_url, POLICY)
    queues = (first, second)
    announce(redis_clean, queues)
    for bucket in (second, first):  # who came first does not matter
        rig.accept([f"u{i}@d{i % 40}.example" for i in range(9000)], bucket)
    with rig.router() as loop:
        taken = work(rig, loop, queues, 40)
    share = taken[first] / taken.total()
    assert 0.7 <= share <= 0.95, taken
    assert taken[second] > 0  # it does not starve


def test_a_fleet_of_its_own_waits_for_nobody(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    rig = Rig.build(tmp_path, redis_url, POLICY)
    announce(redis_clean, ("marketing",), ("bulk",))
    for bucket in ("marketing", "bulk"):
        rig.accept([f"u{i}@d{i % 40}.example" for i in range(2000)], bucket)
    with rig.router() as loop:
        taken = work(rig, loop, ("marketing", "bulk"), 20)
    assert abs(taken["marketing"] - taken["bulk"]) <= 100, taken


def test_marketing_goes_first_where_sources_are_short(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    """One source, 20 jobs a second at Gmail: a window of ten seconds, a fifth of it for bulk."""
    wide = {"window_min": 5000, "window_max": 5000, "batch": 1000}
    rig = Rig.build(tmp_path, redis_url, POLICY, router=wide)
    rig.accept([f"u{i}@gmail.com" for i in range(1000)], "bulk")
    rig.accept([f"u{i}@gmail.com" for i in range(1000)], "marketing")
    with rig.router() as loop:
        loop.turn()
        counts = rig.spool.counts()
        assert counts["marketing"]["dispatched"] == 200
        assert 20 <= counts["bulk"]["dispatched"] <= 40
    alone = tmp_path / "alone"
    alone.mkdir()
    redis_clean.flushall()
    rig = Rig.build(alone, redis_url, POLICY, router=wide)
    rig.accept([f"u{i}@gmail.com" for i in range(1000)], "bulk")
    with rig.router() as loop:
        loop.turn()
        assert rig.spool.counts()["bulk"]["dispatched"] == 200


def test_engaged_recipients_go_before_the_others(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    rig = Rig.build(tmp_path, redis_url, POLICY, router={"window_min": 500, "batch": 100})
    plain = set(rig.accept([f"u{i}@d.example" for i in range(400)], "marketing"))
    engaged = set(rig.accept([f"v{i}@d.example" for i in range(100)], "marketing", meta=ENGAGED))
    bulk = rig.accept([f"w{i}@d.example" for i in range(20)], "bulk", meta=ENGAGED)
    with rig.router(Bucket.MARKETING, Bucket.BULK) as loop:
        rig.drain(loop, 300)
    order = [row.job_id for row in rig.decisions() if row.job_id not in bulk]
    early = [job in engaged for job in order[:130]]
    assert sum(early) == 100  # four of five while both wait
    assert set(order[:130]) & plain  # and nobody starves
    flows = {flow.engaged for flow in rig.spool.flows(Bucket.BULK, rig.clock.now())}
    assert True not in flows  # it is marketing's order only
