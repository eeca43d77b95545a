"""The estimated delivery time of a job and a bucket, from limits and backlog of a real spool."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from console.reading import Reader
from mailweir.plumbing import keys
from tests.integration.router_rig import Rig

POLICY = """
sources:
  a-1: {buckets: [bulk]}
pools:
  a: {sources: [a-1]}
rules:
  - name: all
    action: {pool: a}
providers:
  gmail: {rate: 600/min}
  yahoo: {rate: 60/min}
"""


def test_a_jobs_time_follows_from_its_lane(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    rig = Rig.build(tmp_path, redis_url, POLICY)
    fast = rig.accept([f"u{i}@gmail.com" for i in range(300)])[-1]
    slow = rig.accept([f"u{i}@yahoo.com" for i in range(120)])[-1]
    reader = Reader(rig.settings, rig.clock, rig.spool.database)
    try:
        now = rig.clock.now()
        for job_id, expected in ((fast, 30.0), (slow, 120.0)):
            job = rig.spool.job(job_id)
            assert job is not None
            assert reader.estimate(job) == pytest.approx(now + expected, abs=3)
        (row,) = [row for row in reader.queues().buckets if row.bucket == "bulk"]
        assert (row.due, row.delivery_seconds) == (420, pytest.approx(120.0))
        assert row.backlog_seconds is None  # nothing has moved yet

        rig.client.sadd(keys.PATH_INDEX, "a-1|yahoo")
        rig.client.hset(
            keys.path_state("a-1", "yahoo"), mapping={"phase": "open", "until": now + 900}
        )
        later = Reader(rig.settings, rig.clock, rig.spool.database)
        job = rig.spool.job(slow)
        assert job is not None
        assert later.estimate(job) is None  # nothing leaves for there, nobody knows until when
        later.close()
    finally:
        reader.close()


def test_a_lesser_bucket_waits_for_the_better_one_at_the_same_sources(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    shared = POLICY.replace("[bulk]", "[marketing, bulk]")
    rig = Rig.build(tmp_path, redis_url, shared)
    rig.accept([f"u{i}@yahoo.com" for i in range(120)])
    rig.accept([f"m{i}@yahoo.com" for i in range(60)], "marketing")
    reader = Reader(rig.settings, rig.clock, rig.spool.database)
    try:
        found = {row.bucket: row.delivery_seconds for row in reader.queues().buckets}
    finally:
        reader.close()
    # one a second, four of five for marketing while both wait, then all for bulk
    assert found["marketing"] == pytest.approx(75.0)
    assert found["bulk"] == pytest.approx(180.0)
