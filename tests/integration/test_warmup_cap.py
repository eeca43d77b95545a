"""S53: a warmup cap is per source and provider, all buckets together, and exact under many workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis

from mailweir.contracts.ids import new_id
from mailweir.contracts.policy import Member, Policy, Pool, Source
from mailweir.contracts.policy import Throttle as Limit
from mailweir.contracts.snapshot import PathState, Snapshot
from mailweir.plumbing import keys
from mailweir.spool.schema import attempts
from reputation.policy.book import Book, PathKey, Tried
from tests.contract.throttle.conftest import Hand
from tests.integration.engine_rig import Rig, policy_for, settings_for
from workers.ledger import counts
from workers.throttle.layers import Ask, cap_layers, rate_layer
from workers.throttle.shell import Throttle

pytestmark = pytest.mark.needs("redis")
WORKERS = 4
BUCKETS = ("transactional", "marketing", "bulk")
POLICY = Policy(
    sources={"new": Source("new", warm=False)}, pools={"main": Pool("main", (Member("new"),))}
)
WIDE = rate_layer("path:new|gmail", Limit(600_000, 60), "path")


def ask(snapshot: Snapshot, provider: str, bucket: str) -> Ask:
    return Ask("new", provider, (WIDE, *cap_layers(snapshot, "new", provider, bucket)))


async def day(snapshot: Snapshot, clock: Hand, url: str, provider: str) -> list[int]:
    """Jobs granted in each hour of a day to workers that all want everything for every bucket."""
    clients = [Redis.from_url(url) for _ in range(WORKERS)]
    workers = [Throttle(client, clock) for client in clients]
    hours = []
    for _ in range(24):
        granted = 0
        for _ in range(4):
            clock.move(900)
            answers = await asyncio.gather(
                *(w.take([(ask(snapshot, provider, b), 7)]) for w in workers for b in BUCKETS)
            )
            granted += sum(grant.granted for answer in answers for grant in answer)
        hours.append(granted)
    for client in clients:
        await client.aclose()
    return hours


@pytest.mark.parametrize("provider", ["gmail", "somewhere.example"])
async def test_never_above_the_cap(redis_url: str, redis_clean: redis.Redis, provider: str) -> None:
    redis_clean.set(keys.EPOCH, "one")
    redis_clean.set(keys.COUNTERS_READY, "one")
    clock = Hand()
    clock.move(86400 - clock.now() % 86400 - 900)  # the first quarter of an hour is midnight's
    book = Book(POLICY, ("gmail",))
    snapshot = Snapshot(1, clock.now(), 1, book.publish(clock.now(), {}))
    state = snapshot.path("new", provider, "bulk")
    assert (state.cap_day, state.cap_hour) == (50, 4)
    hours = await day(snapshot, clock, redis_url, provider)
    assert sum(hours) == 50
    assert max(hours) == 4

    # the next day is the same cap while nothing was earned, whatever bucket was seen meanwhile
    key = PathKey("new", provider, "marketing")
    book.tried(Tried(clock.now(), key, 1, "sent", None, None, 0.1))
    book.look(clock.now())
    later = Snapshot(2, clock.now(), 1, book.publish(clock.now(), {}))
    names = {
        layer.name for b in BUCKETS for layer in ask(later, provider, b).layers if layer != WIDE
    }
    place = provider if provider == "gmail" else "other"
    assert names == {f"capd:new|{place}", f"caph:new|{place}"}
    assert sum(await day(later, clock, redis_url, provider)) == 50


async def test_a_lost_redis_counts_all_buckets_again(tmp_path: Path, redis_url: str) -> None:
    rig = Rig.build(settings_for(tmp_path, redis_url, {}), policy_for("gmail"))
    clock = Hand()
    row = {
        "number": 1, "source": "new", "pool": "default", "provider": "gmail", "tenant": "acme",
        "outcome": "sent", "host": "", "stage": "dot", "reply": "", "seconds": 0.1,
        "at": clock.now(),
    }  # fmt: skip
    with rig.spool.database.write() as conn:
        for number, bucket in enumerate(("marketing", "bulk", "bulk")):
            own = {"id": new_id(), "job_id": number, "bucket": bucket}
            conn.execute(attempts.insert(), [row | own])
    book = Book(POLICY, ("gmail",))
    snapshot = Snapshot(1, clock.now(), 1, book.publish(clock.now(), {}))
    found = counts(rig.spool.database, snapshot, POLICY, clock.now())
    assert set(found.values()) == {3}
    assert {key.rsplit(":", 1)[0] for key in found} == {
        layer.key for layer in cap_layers(snapshot, "new", "gmail", "bulk")
    }
    rig.spool.database.close()


def test_probation_of_one_bucket_is_its_own_cap() -> None:
    snapshot = Snapshot(
        1,
        0.0,
        1,
        {
            "s|gmail|marketing": PathState(state="probation", cap_hour=10, cap_day=500),
            "s|gmail|bulk": PathState(state="warming", cap_hour=32, cap_day=500),
        },
    )
    assert [(layer.name, layer.a) for layer in cap_layers(snapshot, "s", "gmail", "marketing")] == [
        ("caph:s|gmail|marketing", 10),
        ("capd:s|gmail", 500),
    ]
    assert [(layer.name, layer.a) for layer in cap_layers(snapshot, "s", "gmail", "bulk")] == [
        ("caph:s|gmail", 32),
        ("capd:s|gmail", 500),
    ]
