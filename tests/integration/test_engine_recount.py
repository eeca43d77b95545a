"""The recount after a lost Redis is quick: 200,000 attempts of the day within 30 s, a tenth in a tenth."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
import redis
from sqlalchemy import text

from mailweir.contracts.ids import new_ids
from mailweir.contracts.policy import Action, Rule
from mailweir.contracts.route import Orders
from mailweir.contracts.snapshot import PathState, Snapshot
from mailweir.plumbing import keys
from mailweir.spool.schema import attempts
from tests.integration.engine_rig import Rig, policy_for, settings_for
from workers.ledger import recount
from workers.throttle.layers import DAY, rule_day

pytestmark = pytest.mark.needs("redis")
FULL, SECONDS = 200_000, 30.0
SHARE = 10  # of the full count, in as large a share of the time
PROVIDERS = [f"p{i}.example" for i in range(50)]
BUCKETS = ("bulk", "marketing", "transactional")


def fill(rig: Rig, count: int) -> None:
    """So many jobs with an attempt each, 30 rules with orders of their own among them."""
    ids = []
    for start in range(0, count, 1000):
        ids += rig.accept([f"u{i}@p.example" for i in range(start, start + 1000)])
    orders = [
        {"o": msgspec.json.encode(Orders(rule=f"r{i}", daily_limit=100_000)).decode(), "n": i}
        for i in range(30)
    ]
    now = rig.clock.now()
    row = {
        "number": 1, "at": now, "pool": "default", "tenant": "acme", "outcome": "sent", "host": "",
        "stage": "dot", "reply": "250 2.0.0 taken", "seconds": 0.1,
    }  # fmt: skip
    with rig.spool.database.write() as conn:
        for one in orders:
            conn.execute(text("UPDATE jobs SET orders = :o WHERE id % 30 = :n"), one)
        for start in range(0, count, 5000):
            some = range(start, min(start + 5000, count))
            conn.execute(
                attempts.insert(),
                [
                    row
                    | {"id": new, "job_id": ids[i], "source": f"mx{i % 8}"}
                    | {"provider": PROVIDERS[i % 50], "bucket": BUCKETS[i % 3]}
                    for i, new in zip(some, new_ids(len(some)), strict=True)
                ],
            )


def test_a_tenth_of_a_large_day_is_counted_in_a_tenth_of_the_time(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    policy = msgspec.structs.replace(
        policy_for(), rules=(Rule(1, "r0", action=Action(daily_limit=100_000)),)
    )
    rig = Rig.build(settings_for(tmp_path, redis_url, {}), policy)
    fill(rig, FULL // SHARE)
    now = rig.clock.now()
    paths = {f"mx0|{p}|bulk": PathState(cap_day=9999) for p in PROVIDERS}
    began = time.monotonic()
    counted = recount(
        rig.spool.database, redis_clean, epoch="new", snapshot=Snapshot(1, now, 1, paths),
        policy=policy, clock=rig.clock,
    )  # fmt: skip
    took = time.monotonic() - began
    print(f"recount of {FULL // SHARE} attempts: {took:.2f} s")
    assert took < SECONDS / SHARE
    assert counted == 2 * FULL // SHARE, "every attempt once for its cap, once for its rule"
    rules = [
        int(redis_clean.get(keys.counted(rule_day(f"r{i}"), int(now // DAY))) or 0)
        for i in range(30)
    ]
    assert sum(rules) == FULL // SHARE
    assert redis_clean.get(keys.COUNTERS_READY) == b"new"
