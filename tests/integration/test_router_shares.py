"""Weighted shares as the router deals them: exact in one process, within 2 % over several."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import redis

from mailweir.contracts.job import Bucket
from mailweir.contracts.snapshot import PathState, Snapshot
from mailweir.plumbing import keys
from tests.integration.router_rig import Rig

POLICY = """
sources:
  a-1: {buckets: [bulk]}
  b-1: {buckets: [bulk]}
pools:
  a: {sources: [a-1]}
  b: {sources: [b-1]}
rules:
  - name: split
    action: {pool: {a: 80, b: 20}}
buckets:
  bulk: {recipient_limit: none}
"""
WINDOWS = {"router": {"window_min": 20_000, "window_max": 20_000}}


def test_eighty_twenty_is_exact_in_every_window_of_a_thousand(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    rig = Rig.build(tmp_path, redis_url, POLICY, **WINDOWS)
    rig.accept([f"u{i}@d{i % 7}.example" for i in range(3000)])
    with rig.router(Bucket.BULK) as loop:
        rig.drain(loop, 3000)
    pools = [row.pool for row in rig.decisions()]
    assert len(pools) == 3000
    assert {pools[at : at + 1000].count("a") for at in range(2001)} == {800}


@pytest.mark.parametrize("routers", [2, 3])
def test_several_routers_keep_shares_within_two_percent(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis, routers: int
) -> None:
    rig = Rig.build(tmp_path, redis_url, POLICY, **WINDOWS)
    count = 10_000
    rig.accept([f"u{i}@d{i % 7}.example" for i in range(count)])
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            with rig.router(Bucket.BULK) as loop:
                rig.drain(loop, count)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=serve) for _ in range(routers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    rows = rig.decisions()
    assert len({row.job_id for row in rows}) == len(rows) == count  # nobody decided for two
    pools = Counter(row.pool for row in rows)
    assert abs(pools["a"] - 0.8 * count) <= 0.02 * count, pools


def test_shares_stay_exact_when_one_queue_is_full(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    """A job claimed for a full queue has no turn: what goes shares 80/20."""
    policy = POLICY.replace("a: {sources: [a-1]}", "a: {sources: [a-1], sticky: false}")
    rig = Rig.build(tmp_path, redis_url, policy, router={"window_min": 300, "window_max": 300})
    slow = {f"{s}|gmail|bulk": PathState(score=0.5) for s in ("a-1", "b-1")}
    snapshot = Snapshot(1, rig.clock.now(), 1, slow)
    redis_clean.set(keys.SNAPSHOT, msgspec.json.encode(snapshot))
    redis_clean.set(keys.SNAPSHOT_VERSION, "1")
    rig.accept([f"u{i}@{'gmail.com' if i % 2 else 'd.example'}" for i in range(2000)])
    with rig.router(Bucket.BULK) as loop:
        for _ in range(8):
            loop.turn()
    rows = rig.decisions()
    queues = Counter(row.queue for row in rows)
    assert queues["bulk"] == 300  # full: the rest of its jobs waits
    assert 0 < queues["bulk.throttled"] < 300
    pools = Counter(row.pool for row in rows)
    assert abs(pools["a"] - 0.8 * len(rows)) < 1
