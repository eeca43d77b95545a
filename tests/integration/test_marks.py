"""Marks *in data* that Redis does not take at once (N41)."""

from __future__ import annotations

import redis
import redis.asyncio

from mailweir.plumbing import keys
from mailweir.plumbing.clock import REAL
from mailweir.plumbing.wire import wire_of
from workers.marks import Marks


async def test_marks_redis_refused_go_with_the_next_ones(
    redis_url: str, redis_clean: redis.Redis
) -> None:
    client = redis.asyncio.Redis.from_url(redis_url)
    marks = Marks(wire_of(client), REAL)
    redis_clean.config_set("maxmemory", 1)
    try:
        for chunk, job in ((1, 10), (1, 11), (2, 20)):
            booked = marks.add(chunk, job)
        await booked.wait()  # the mails go all the same
        assert not redis_clean.exists(keys.in_data(1), keys.in_data(2))
    finally:
        redis_clean.config_set("maxmemory", 0)
    marks.ended(1, 11)
    marks.ended(2, 20)
    await marks.add(1, 12).wait()
    assert set(redis_clean.hkeys(keys.in_data(1))) == {b"10", b"12"}
    assert redis_clean.ttl(keys.in_data(1)) > 0
    assert not redis_clean.exists(keys.in_data(2)), "what has ended needs no mark"
    await client.aclose()
