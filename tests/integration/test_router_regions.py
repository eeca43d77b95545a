"""Queues of regions: where processes have a region every region's queue is served, else there are none."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from console.cli import build
from console.flower import Names
from mailweir.contracts.ids import format_id
from mailweir.contracts.job import Bucket
from mailweir.plumbing.broker import broker_url
from mailweir.plumbing.broker import redis_url as broker_redis
from mailweir.plumbing.keys import CELERY_PREFIX
from tests.integration.router_rig import Rig

POLICY = """
regions: [eu, us]
sources:
  eu-1: {buckets: [bulk], region: eu}
  us-1: {buckets: [bulk], region: us}
pools:
  a: {sources: [eu-1]}
  b: {sources: [us-1]}
rules:
  - name: all
    action: {pool: {a: 50, b: 50}}
buckets:
  bulk: {recipient_limit: none}
"""


@pytest.mark.parametrize(
    ("region", "queues"),
    [(None, {"bulk": 40}), ("eu", {"bulk@eu": 20, "bulk@us": 20})],
)
def test_every_job_finds_a_queue(
    tmp_path: Path,
    redis_url: str,
    redis_clean: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    region: str | None,
    queues: dict[str, int],
) -> None:
    rig = Rig.build(tmp_path, redis_url, POLICY, region=region)
    ids = rig.accept([f"u{i}@d{i}.example" for i in range(40)])
    with rig.router(Bucket.BULK) as loop:
        rig.drain(loop, 40)
    assert Counter(row.queue for row in rig.decisions()) == queues
    monkeypatch.setenv("MAILWEIR_DATA", str(tmp_path))
    answer = CliRunner().invoke(
        build(), ["route", "explain", "--id", format_id(ids[0]), "-o", "json"]
    )
    assert json.loads(answer.stdout)["expands_to_itself"]


LIVE = 2.0  # seconds until a change of the policy is in force everywhere


def test_regions_change_live(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A region comes and another goes: routes, `mailweir queues`, Flower and the reconciler follow."""
    router = {"lost_after": 0.2, "reconcile_every": 0.05, "window_min": 10_000}
    rig = Rig.build(tmp_path, redis_url, POLICY, region="eu", router=router)
    monkeypatch.setenv("MAILWEIR_DATA", str(tmp_path))
    monkeypatch.setenv("MAILWEIR_REDIS__URL", redis_url)
    monkeypatch.setenv("MAILWEIR_REGION", "eu")
    names = Names(rig.settings)

    def shown() -> set[str]:
        answer = CliRunner().invoke(build(), ["queues", "-o", "json"])
        assert answer.exit_code == 0, answer.output
        return {row["queue"] for row in json.loads(answer.stdout)["queues"]}

    with rig.router(Bucket.BULK) as loop:
        rig.accept([f"u{i}@d{i}.example" for i in range(40)])
        rig.drain(loop, 40)
        assert Counter(row.queue for row in rig.decisions()) == {"bulk@eu": 20, "bulk@us": 20}
        assert "bulk@us" in shown() & set(names())

        rig.apply(POLICY.replace("[eu, us]", "[eu, ap]").replace("region: us", "region: ap"))
        start = time.monotonic()
        seen: set[str] = set()
        while "bulk@ap" not in seen:
            late = rig.accept([f"v{time.monotonic_ns()}-{i}@d.example" for i in range(2)])
            loop.turn()
            seen = {row.queue for row in rig.decisions() if row.job_id in late}
            assert time.monotonic() - start < LIVE, seen
        # us has left the policy, its queue stays in sight as long as chunks wait in it
        assert {"bulk@ap", "bulk@us", "marketing@ap"} <= shown()
        assert "marketing@us" not in shown()
        while not {"bulk@ap", "bulk@us"} <= set(names()):
            assert time.monotonic() - start < 2 * LIVE
            time.sleep(0.05)

        # and what the broker loses of it is freed: the reconciler counts it too
        broker = redis.Redis.from_url(broker_redis(broker_url(rig.settings)))
        lost = rig.spool.window().queues["bulk@us"]
        assert lost >= 20
        broker.delete(CELERY_PREFIX + "bulk@us")
        broker.close()
        deadline = time.monotonic() + 20
        while "bulk@us" in rig.spool.window().queues:
            loop._reconciler.turn()
            assert time.monotonic() < deadline
        rig.drain(loop, sum(rig.spool.window().queues.values()) + lost)
    assert "bulk@us" not in shown()
    again = Counter(row.queue for row in rig.decisions()[-lost:])
    assert set(again) <= {"bulk@eu", "bulk@ap"}


def test_a_policy_without_regions_where_processes_have_one(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    """Workers of region eu serve bulk@eu: a job in a queue without a region would wait for ever."""
    rig = Rig.build(tmp_path, redis_url, POLICY.replace("regions: [eu, us]", ""), region="eu")
    rig.accept([f"u{i}@d{i}.example" for i in range(10)])
    with rig.router(Bucket.BULK) as loop:
        rig.drain(loop, 10)
    assert Counter(row.queue for row in rig.decisions()) == {"bulk@eu": 5, "bulk@us": 5}
