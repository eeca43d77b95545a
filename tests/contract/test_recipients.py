"""The per-recipient limit: the script and its twin agree on any story, and no span ever holds too many."""

from __future__ import annotations

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailweir.contracts.policy import Throttle
from mailweir.plumbing import keys
from router.policy.recipients import REFUSED, Entry, reserve
from router.recipients import MOST_HELD, EpochLost, Place, RecipientLimit, Want
from tests.contract.throttle.conftest import Hand

pytestmark = pytest.mark.needs("redis")
SECRET = b"k" * 32
STEP = st.tuples(st.integers(0, 2000), st.sampled_from("ab"), st.integers(1, 40))


def limiter(url: str, clock: Hand) -> RecipientLimit:
    client = redis.Redis.from_url(url)
    client.flushall()
    client.set(keys.EPOCH, "one")
    client.set(keys.RECIPIENTS_READY, "one")
    return RecipientLimit(client, clock, SECRET, lambda since, now: {})


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    story=st.lists(STEP, min_size=1, max_size=60),
    limit=st.integers(1, 4),
    per=st.sampled_from([60.0, 3600.0]),
)
def test_script_and_policy_agree_on_any_story(
    story: list[tuple[int, str, int]], limit: int, per: float, redis_url: str
) -> None:
    clock = Hand()
    one = limiter(redis_url, clock)
    known: dict[str, list[Entry]] = {"a": [], "b": []}
    for wait, who, job in story:
        clock.move(wait)
        [place] = one.reserve([Want(job, f"{who}@x.test", Throttle(limit, per))])
        seconds, known[who] = reserve(known[who], str(job), clock.now(), limit, per, MOST_HELD)
        assert place.refused is (seconds == REFUSED)
        assert place.wait == pytest.approx(max(0.0, seconds), abs=1e-5)
        for start in [at for _, at in known[who]]:
            assert sum(start <= at < start + per for _, at in known[who]) <= limit


def test_a_batch_of_many_recipients_and_limits_in_order(redis_url: str) -> None:
    clock = Hand()
    one = limiter(redis_url, clock)
    few, many = Throttle(1, 60.0), Throttle(3, 3600.0)
    wants = [
        Want(1, "a@x.test", few),
        Want(2, "b@x.test", many),
        Want(3, "a@x.test", few),
        Want(4, "b@x.test", many),
        Want(5, "a@x.test", few),
    ]
    now = Place(0.0, False)
    assert one.reserve(wants) == [now, now, Place(60.0, False), now, Place(120.0, False)]
    assert one.reserve([]) == []


def test_at_most_so_many_are_held_and_a_held_one_keeps_its_place(redis_url: str) -> None:
    clock = Hand()
    one = limiter(redis_url, clock)
    limit = Throttle(1, 100.0)
    wants = [Want(n, "a@x.test", limit) for n in range(MOST_HELD + 3)]
    places = one.reserve(wants)
    assert [p.refused for p in places] == [False] * (MOST_HELD + 1) + [True] * 2
    clock.move(150)
    assert one.reserve([wants[2]]) == [Place(50.0, False)]
    clock.move(50)
    assert one.reserve([wants[2]]) == [Place(0.0, False)]


def test_a_lost_redis_is_recounted_from_attempts(redis_url: str) -> None:
    clock = Hand()
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    client.set(keys.EPOCH, "two")
    asked = []

    def recent(since: float, now: float) -> dict[str, dict[int, float]]:
        asked.append((since, now))
        return {"a@x.test": {7: now - 10, 6: now - 3599}}

    one = RecipientLimit(client, clock, SECRET, recent)
    limit = Throttle(2, 3600.0)
    [a, b] = one.reserve([Want(1, "a@x.test", limit), Want(2, "b@x.test", limit)])
    assert (a.wait, b.wait) == (pytest.approx(1.0), 0.0)
    assert client.get(keys.RECIPIENTS_READY) == b"two"
    assert asked == [(pytest.approx(clock.now() - 3600), pytest.approx(clock.now()))]


def test_nothing_is_reserved_on_counts_that_are_gone(redis_url: str) -> None:
    """Wiped between two calls, however close: the second one sees it."""
    clock = Hand()
    one = limiter(redis_url, clock)
    one._recent = lambda since, now: {"a@x.test": {7: now, 8: now}}
    limit = Throttle(2, 3600.0)
    assert one.reserve([Want(1, "a@x.test", limit)]) == [Place(0.0, False)]
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    with pytest.raises(EpochLost):
        one.reserve([Want(2, "a@x.test", limit)])
    client.set(keys.EPOCH, "two")
    assert one.reserve([Want(2, "a@x.test", limit)]) == [Place(3600.0, False)]


def test_a_job_that_comes_back_after_a_wipe_takes_no_second_place(redis_url: str) -> None:
    """Its chunk was lost with the queue; it was on its way when the places were recounted."""
    clock = Hand()
    one = limiter(redis_url, clock)
    one._recent = lambda since, now: {"a@x.test": {7: now, 8: now}}
    redis.Redis.from_url(redis_url).set(keys.EPOCH, "two")
    limit = Throttle(3, 3600.0)
    at_once = Place(0.0, False)
    wants = [Want(job, "a@x.test", limit) for job in (9, 7, 8)]
    assert one.reserve(wants) == [at_once] * 3
    assert one.reserve([Want(10, "a@x.test", limit)])[0].wait > 0


def test_a_recount_changes_no_place_that_was_reserved_meanwhile(redis_url: str) -> None:
    """Two routers find a new epoch; the slower one counts after the other has reserved."""
    clock = Hand()
    slow = limiter(redis_url, clock)
    client = redis.Redis.from_url(redis_url)
    limit = Throttle(1, 3600.0)
    quick = RecipientLimit(client, clock, SECRET, lambda since, now: {})

    def recent(since: float, now: float) -> dict[str, dict[int, float]]:
        assert quick.reserve([Want(1, "a@x.test", limit)]) == [Place(0.0, False)]
        return {"a@x.test": {}}

    slow._recent = recent
    client.set(keys.EPOCH, "two")
    assert slow.reserve([Want(2, "a@x.test", limit)]) == [Place(3600.0, False)]
