"""Who goes first when not all find room: buckets' rules, priorities, tenants."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import redis

from mailweir.contracts.job import Bucket, JobMeta
from mailweir.plumbing import keys
from mailweir.plumbing.settings import RouterSettings
from mailweir.spool.records import Pick
from router.window import Windows
from tests.integration.router_rig import Rig

POLICY = """
sources:
  a-1: {buckets: [marketing, bulk]}
  a-2: {buckets: [marketing, bulk]}
pools:
  a: {sources: [a-1, a-2]}
rules:
  - name: urgent
    match: {tag: urgent}
    action: {pool: a, priority: 1}
  - name: paused
    match: {tag: paused}
    action: {hold: wait for the editor, priority: 2}
  - name: rest
    action: {pool: a}
buckets:
  bulk: {recipient_limit: none}
"""


def test_a_rules_priority_goes_first_and_is_kept(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    rig = Rig.build(tmp_path, redis_url, POLICY)
    rig.accept([f"u{i}@d.example" for i in range(90)])
    urgent = rig.accept([f"v{i}@d.example" for i in range(4)], meta=JobMeta(tags=("urgent",)))
    paused = rig.accept(["w@d.example"], meta=JobMeta(tags=("paused",)))
    with rig.router(Bucket.BULK) as loop:
        rig.drain(loop, 94)
    with rig.spool.database.read() as conn:
        rows = conn.exec_driver_sql(
            "SELECT j.id, j.flow, j.priority FROM jobs j LEFT JOIN chunks c ON c.id = j.chunk_id"
            " ORDER BY c.id"
        ).all()
    assert {row.priority for row in rows if row.id in urgent} == {1}
    assert Counter(row.priority for row in rows) == {1: 4, 2: 1, 5: 90}
    assert all(row.flow.endswith(f"|{row.priority}") for row in rows)
    # the held one waits under its rule's priority
    flows = rig.spool.flows(Bucket.BULK, rig.clock.now())
    assert [flow.priority for flow in flows] == [2]
    with rig.spool.claim([Pick(flows[0], 1)], rig.clock.now() + 1e6) as batch:
        assert [job.id for job in batch.jobs] == paused


def test_a_small_tenant_does_not_wait_behind_a_large_one(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    """5,000 jobs of A wait when 50 of B arrive: B's are out after 400 routed jobs, not after 5,000."""
    rig = Rig.build(tmp_path, redis_url, POLICY, router={"batch": 100, "window_min": 10_000})
    rig.accept([f"u{i}@d.example" for i in range(5000)], tenant="a")
    with rig.router(Bucket.BULK) as loop:
        rig.drain(loop, 300)
        small = set(rig.accept([f"v{i}@d.example" for i in range(50)], tenant="b"))
        rig.drain(loop, 700)
    order = [row.job_id for row in rig.decisions()]
    places = [place for place, job in enumerate(order) if job in small]
    assert len(places) == 50
    assert places[-1] < 300 + 200


def test_each_buckets_window_follows_its_own_fleet(redis_clean: redis.Redis) -> None:
    """A loop asks bucket after bucket: the second one's window is no smaller for that."""
    slot = int(time.time() // keys.FLEET_SLOT)
    for name, count in (("marketing", 200), ("bulk", 600)):
        for back in range(-1, 6):
            redis_clean.hset(keys.FLEET.format(queue=name), str(slot - back), str(count))
    windows = Windows(redis_clean, RouterSettings(window_seconds=5.0))
    assert windows.sizes(("marketing",))["marketing"] >= 500
    assert windows.sizes(("bulk",))["bulk"] >= 1500
    assert windows.sizes(("marketing",))["marketing"] >= 500
