"""One suite, two throttles: the scripts in a real Redis and their twin in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from workers.throttle.shell import Throttle
from workers.throttle.twin import MemoryThrottle
from workers.throttle.types import Limiter

START = 1_000_000.0


class Hand(Clock):
    """A clock moved by hand: scripts see its time through origin and a rate of nearly nothing."""

    def __init__(self, at: float = START) -> None:
        # small enough to vanish beside the origin: both see the very same times
        super().__init__(origin=at, rate=1e-24)

    def now(self) -> float:
        return self.origin

    def move(self, seconds: float) -> None:
        object.__setattr__(self, "origin", self.origin + seconds)


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture(params=["redis", "memory"])
async def limiter(request: pytest.FixtureRequest, clock: Hand) -> AsyncIterator[Limiter]:
    if request.param == "memory":
        yield MemoryThrottle(clock.now, chance=lambda: 0.5)
        return
    url = request.getfixturevalue("redis_url")
    redis = Redis.from_url(url)
    await redis.flushall()
    await redis.set(keys.EPOCH, "one")
    await redis.set(keys.COUNTERS_READY, "one")
    yield Throttle(redis, clock, chance=lambda: 0.5)
    await redis.aclose()
