"""Redis lost: nothing counted is granted before the recount; while it is away, a bounded local share."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis

from mailweir.contracts.ids import new_id
from mailweir.contracts.policy import Throttle as Limit
from mailweir.contracts.snapshot import PathState, Snapshot
from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.wire import wire_of
from mailweir.spool.schema import attempts
from tests.contract.throttle.conftest import Hand
from tests.integration.engine_rig import Rig, policy_for, settings_for
from workers.ledger import recount
from workers.throttle.layers import DAY, Ask, Layer, cap_layers, rate_layer
from workers.throttle.shell import Throttle

pytestmark = pytest.mark.needs("redis")
PATH = rate_layer("path:mx1|gmail", Limit(60_000, 60), "path")


async def test_counted_limits_wait_for_the_recount(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    rig = Rig.build(settings_for(tmp_path, redis_url, {}), policy_for("gmail"))
    clock = Clock()
    now = clock.now()
    row = {
        "number": 1, "source": "mx1", "pool": "default", "provider": "gmail", "bucket": "bulk",
        "tenant": "acme", "outcome": "sent", "host": "", "stage": "dot", "reply": "", "seconds": 0.1,
    }  # fmt: skip
    with rig.spool.database.write() as conn:
        conn.execute(
            attempts.insert(), [row | {"id": new_id(), "job_id": i, "at": now} for i in range(30)]
        )
        yesterday = row | {"id": new_id(), "job_id": 99, "at": now - 2 * DAY}
        conn.execute(attempts.insert(), [yesterday])
    snapshot = Snapshot(1, now, 1, {"mx1|gmail|bulk": PathState(cap_day=50)})
    ask = Ask("mx1", "gmail", (PATH, *cap_layers(snapshot, "mx1", "gmail", "bulk")))
    redis_clean.set(keys.EPOCH, "new")
    client = Redis.from_url(redis_url)
    throttle = Throttle(client, clock)
    [before] = await throttle.take([(ask, 100)])
    assert before.granted == 0
    assert before.layer == "capd:mx1|gmail"
    assert recount(
        rig.spool.database, redis_clean, epoch="new", snapshot=snapshot,
        policy=policy_for("gmail"), clock=clock,
    ) == 30  # fmt: skip
    granted, layer = 0, None
    while layer != "capd:mx1|gmail":
        [after] = await throttle.take([(ask, 100)])
        granted, layer = granted + after.granted, after.layer
    assert granted == 20, "50 a day, 30 are gone"
    await wire_of(client).close()
    await client.aclose()


async def test_away_a_worker_grants_its_share_and_debits_it_on_return(
    redis_url: str, redis_clean: redis.Redis
) -> None:
    redis_clean.set(keys.EPOCH, "one")
    redis_clean.set(keys.COUNTERS_READY, "one")
    clock = Hand()
    cap = Layer("capd:mx1|gmail", "count", 100, DAY)
    ask = Ask("mx1", "gmail", (PATH, cap))
    client = Redis.from_url(redis_url)
    throttle = Throttle(client, clock, share=lambda: 4)
    await throttle.take([(ask, 1)])
    clock.move(60)
    [seen] = await throttle.take([(ask, 20)])
    assert seen.granted == 20
    wire = wire_of(client)
    good = wire.pool
    wire.pool = Redis.from_url("unix:///nonexistent/mailweir.sock").connection_pool
    await wire.close()
    granted = 0
    for _ in range(400):
        clock.move(1.0)
        [grant] = await throttle.take([(ask, 5)])
        assert grant.local
        granted += grant.granted
    assert granted == (100 - 20) // 4
    assert throttle.local
    wire.pool = good
    throttle._again = 0.0  # the pause before it asks Redis again
    [back] = await throttle.take([(ask, 1)])
    assert not back.local
    slot = int(clock.now() // DAY)
    assert int(redis_clean.get(keys.counted(cap.name, slot)) or 0) == 20 + granted + back.granted
    await wire_of(client).close()
    await client.aclose()
