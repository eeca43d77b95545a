"""What workers learn of MX reaches the routers; what a router misses, a worker resolves."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import redis
import redis.asyncio

from mailweir.plumbing import keys, mx
from mailweir.plumbing.geo import Geo
from mailweir.plumbing.settings import Settings
from router.mx import MxReader
from tests.services import mmdb
from workers.delivery.destinations import Destinations
from workers.mx_notes import MxNotes


def installation(tmp_path: Path, redis_url: str):
    geo = Geo(mmdb.write(tmp_path / "g.mmdb", {"192.0.2.0/24": mmdb.country("EU", "DE")}))
    notes = MxNotes(redis.asyncio.Redis.from_url(redis_url), geo)
    settings = Settings.model_validate(
        {"data": tmp_path, "dns": {"mx_map": {"a.example": ["192.0.2.9"], "b.example": ["mx.b"]}}}
    )
    return notes, Destinations(settings, learn=notes.learn)


def test_a_note_reaches_the_router_and_a_missing_one_is_asked_for(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    async def run() -> None:
        notes, destinations = installation(tmp_path, redis_url)
        await destinations.resolve("a.example")
        assert await notes.flush() == 1
        assert await notes.flush() == 0

        reader = MxReader(redis_clean, geo=True)
        first = reader.places(["a.example", "b.example"], True)
        assert first.zones == {"a.example": "europe/de"}
        assert first.unplaced == {"b.example"}
        assert await notes.answer(destinations) == 1
        second = reader.places(["a.example", "b.example"], True)
        assert second.unplaced == frozenset()
        assert second.zones == {"a.example": "europe/de"}  # mx.b is no address: it has no zone
        assert second.providers.keys() == {"a.example", "b.example"}
        assert await notes.answer(destinations) == 0
        await destinations.close()

    asyncio.run(run())


def test_nobody_is_asked_where_no_zone_could_come_or_none_is_wanted(
    redis_clean: redis.Redis,
) -> None:
    assert MxReader(redis_clean, geo=False).places(["a.example"], True).unplaced == frozenset()
    assert MxReader(redis_clean, geo=True).places(["a.example"], False).unplaced == frozenset()
    assert redis_clean.exists(keys.MX_ASKED) == 0


def test_notes_are_bounded_and_expire(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis, monkeypatch
) -> None:
    monkeypatch.setattr(mx, "MOST", 2)
    monkeypatch.setattr("workers.delivery.destinations._provider_by_name", lambda d: d)

    async def run() -> None:
        notes, destinations = installation(tmp_path, redis_url)
        for _ in range(3):
            for name in ("a.example", "b.example"):
                await destinations.resolve(name)
            await notes.flush(2)
        notes.learn("c.example", None)
        assert await notes.flush(2) == 0
        await destinations.close()

    asyncio.run(run())
    name = mx.hash_of(time.time())
    assert redis_clean.hlen(name) == 2
    assert 0 < redis_clean.ttl(name) <= 2 * mx.SPAN


def test_without_redis_what_is_known_serves(tmp_path: Path, redis_clean: redis.Redis) -> None:
    redis_clean.hset(
        mx.hash_of(time.time()), mapping={"a.example": mx.encode(mx.MxNote("p", "s", "europe"))}
    )
    reader = MxReader(redis_clean, geo=True)
    assert reader.places(["a.example"], True).providers == {"a.example": "p"}
    reader._redis = redis.Redis(unix_socket_path=str(tmp_path / "none.sock"))
    again = reader.places(["a.example", "z.example"], True)
    assert again.providers == {"a.example": "p"}
    assert again.unplaced == {"z.example"}  # fails closed: it waits
