"""The script that books campaigns and its twin agree on any story; workers see who is slowed."""

from __future__ import annotations

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from mailweir.plumbing import keys
from tests.contract.throttle.conftest import Hand
from workers.campaigns import Campaigns
from workers.policy.campaign import Campaign, book

pytestmark = pytest.mark.needs("redis")
STEP = st.tuples(st.integers(0, 400), st.integers(0, 40), st.integers(0, 120))


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(story=st.lists(STEP, min_size=1, max_size=25))
async def test_script_and_policy_agree_on_any_story(
    story: list[tuple[int, int, int]], redis_url: str
) -> None:
    client = Redis.from_url(redis_url)
    await client.delete(keys.CAMPAIGNS_SLOWED, keys.campaign("acme|spring"))
    clock = Hand()
    one = Campaigns(client, clock)
    state = Campaign()
    for sent, bounced, wait in story:
        clock.move(wait)
        for _ in range(sent):
            one.note("acme|spring", False)
        for _ in range(bounced):
            one.note("acme|spring", True)
        await one.look()
        if sent or bounced:
            state = book(state, sent, bounced, clock.now())
        assert one.slowed.get("acme|spring", 0.0) == pytest.approx(state.rate or 0.0, rel=1e-6)
    await client.aclose()


async def test_what_redis_did_not_hear_is_booked_later(
    redis_url: str, redis_clean: redis.Redis
) -> None:
    client = Redis.from_url(redis_url)
    clock = Hand()
    one, other = Campaigns(client, clock), Campaigns(client, clock)
    one.note("acme|spring", False)
    await one.look()
    clock.move(100)
    good = client.connection_pool
    client.connection_pool = Redis.from_url("unix:///nonexistent/mailweir.sock").connection_pool
    for i in range(200):
        one.note("acme|spring", i % 5 == 0)
    with pytest.raises(redis.RedisError):
        await one.look()
    client.connection_pool = good
    await one.look()
    await other.look()
    assert one.slowed == other.slowed
    assert one.slowed["acme|spring"] == pytest.approx(201 / 100 / 2, rel=1e-3)
    await client.aclose()
