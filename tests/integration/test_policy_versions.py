"""Policy versions in SQL, and the watch that follows them by Redis and by SQL."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import redis
from redis.exceptions import ConnectionError as RedisDown

from mailweir.contracts.ids import new_ids
from mailweir.contracts.policy import Policy
from mailweir.plumbing import keys, policies
from mailweir.plumbing.database import Database, migrate
from router.policy.default import default_policy


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        made = Database(f"sqlite:///{tmp_path / 'spool.db'}")
    else:
        made = Database(request.getfixturevalue("postgres_new")())
    migrate(made)
    yield made
    made.close()


def variant(percent: float) -> Policy:
    """A policy that can be told from others by its throttled share."""
    base = default_policy()
    thresholds = msgspec.structs.replace(base.thresholds, throttled_share=percent)
    return msgspec.structs.replace(base, thresholds=thresholds)


def put(database: Database, percent: float, **more: object) -> int:
    options = {"author": "ann", "reason": f"to {percent}", "now": 5.0, **more}
    return policies.apply(database, variant(percent), f"# {percent}\n", **options)


def share(policy: Policy) -> float:
    return policy.thresholds.throttled_share


class Ticks:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_in_force_until_something_is_applied(database: Database):
    with pytest.raises(policies.NoPolicy):
        policies.current(database)
    with pytest.raises(policies.NoPolicy):
        policies.rollback(database, author="ann", reason=None, now=1.0)
    assert put(database, 0.1) == 1
    assert (share(policies.current(database)), policies.current(database).version) == (0.1, 1)
    with pytest.raises(policies.UnknownVersion):
        policies.rollback(database, author="ann", reason=None, now=1.0)


def test_rollback_goes_back_and_further_back_and_to_a_version(database: Database):
    for percent in (0.1, 0.2, 0.3):
        put(database, percent)
    back = {"author": "bob", "reason": "bounces", "now": 9.0}
    assert policies.rollback(database, **back) == 4
    assert share(policies.current(database)) == 0.2
    assert policies.rollback(database, to=1, **back) == 5
    assert share(policies.current(database)) == 0.1
    latest = policies.history(database)[0]
    assert (latest.author, latest.reason) == ("bob", "rollback to version 1: bounces")
    assert policies.stored(database)[:2] == (5, "# 0.1\n")
    with pytest.raises(policies.UnknownVersion):
        policies.rollback(database, to=77, **back)


def test_a_canary_decides_its_percentage_and_ends_by_rollback_or_promotion(database: Database):
    put(database, 0.1)
    put(database, 0.2, canary=10)
    force = policies.in_force(database)
    assert (share(force.live), share(force.canary), force.percent) == (0.1, 0.2, 10)
    ids = new_ids(10_000)
    chosen = Counter(share(force.decides(i)) for i in ids)
    assert abs(chosen[0.2] - 1000) < 150
    assert all(force.decides(i) is force.decides(i) for i in ids)
    put(database, 0.3, shadow=True)
    assert share(policies.in_force(database).shadow) == 0.3
    policies.rollback(database, author="bob", reason=None, now=9.0)
    after = policies.in_force(database)
    assert (share(after.live), after.canary, after.shadow) == (0.1, None, None)
    put(database, 0.2)
    assert policies.in_force(database).canary is None


def test_two_operators_at_once_get_two_versions(database: Database):
    got: list[int] = []
    threads = [
        threading.Thread(target=lambda p=p: got.append(put(database, p))) for p in (0.1, 0.2, 0.3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [1, 2, 3]


def test_the_watch_follows_redis_within_its_refresh(database: Database, redis_clean: redis.Redis):
    ticks = Ticks()
    put(database, 0.1, redis=redis_clean)
    watch = policies.PolicyWatch(database, redis_clean, monotonic=ticks)
    first = watch.get()
    assert share(first) == 0.1
    put(database, 0.2, redis=redis_clean)
    assert watch.get() is first  # the same object until the next look
    ticks.now += policies.REFRESH
    assert share(watch.get()) == 0.2


def test_an_apply_whose_announcement_was_lost_is_found_in_sql(
    database: Database, redis_clean: redis.Redis
):
    ticks = Ticks()
    put(database, 0.1, redis=redis_clean)
    watch = policies.PolicyWatch(database, redis_clean, monotonic=ticks)
    assert share(watch.get()) == 0.1
    ticks.now += policies.REFRESH
    watch.get()
    put(database, 0.2)  # no Redis at hand
    ticks.now += policies.SQL_REFRESH
    assert share(watch.get()) == 0.2
    assert redis_clean.get(keys.POLICY_VERSION) == b"2"
    redis_clean.flushall()
    put(database, 0.3)
    ticks.now += policies.REFRESH
    assert share(watch.get()) == 0.3


def test_without_redis_the_watch_asks_sql(database: Database):
    class Away(redis.Redis):
        def get(self, name: object) -> bytes:
            raise RedisDown("away")

    for client in (None, Away()):
        ticks = Ticks()
        put(database, 0.1)
        watch = policies.PolicyWatch(database, client, monotonic=ticks)
        assert share(watch.get()) == 0.1
        put(database, 0.2)
        ticks.now += policies.REFRESH
        assert share(watch.get()) == 0.2
