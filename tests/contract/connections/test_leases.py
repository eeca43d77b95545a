"""Connection leases: never more than the cap over all workers, none kept by the dead; script and twin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from mailweir.plumbing import keys
from tests.contract.connections.twin import MemoryLeases
from workers.connections import Claim, Connections, Held, LeaseBook, RedisLeases

LEASE = 2.0  # seconds; those that must not have run out between two questions are halves of it
LONG = 60.0  # of one that does not run out in a test

Pass = Callable[[float], Awaitable[None]]  # lets so many seconds pass


class Hand:
    now = 1000.0

    async def move(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(params=["redis", "memory"])
async def leases(request: pytest.FixtureRequest) -> AsyncIterator[tuple[LeaseBook, Pass]]:
    if request.param == "memory":
        hand = Hand()
        yield MemoryLeases(lambda: hand.now), hand.move
        return
    redis = Redis.from_url(request.getfixturevalue("redis_url"))
    await redis.flushall()
    yield RedisLeases(redis), asyncio.sleep  # the lease is measured by Redis' own clock
    await redis.aclose()


async def claim(
    book: LeaseBook, worker: str, want: int, cap: int = 3, part: int = 1, lease: float = LONG
) -> Held:
    [held] = await book.claim(worker, [Claim("mx1", "site", want, cap, part)], lease)
    return held


async def test_all_workers_together_hold_the_cap(leases: tuple[LeaseBook, Pass]) -> None:
    book, _ = leases
    assert await claim(book, "a", 2) == Held(2, 0)
    assert await claim(book, "b", 5) == Held(1, 0)
    assert await claim(book, "c", 1) == Held(0, 0)
    assert await claim(book, "a", 2) == Held(2, 1), "somebody waits"
    assert await claim(book, "a", 1) == Held(1, 1)
    assert await claim(book, "c", 1) == Held(1, 0)
    assert await claim(book, "b", 0) == Held(0, 0)
    assert await claim(book, "c", 3) == Held(2, 0)


async def test_who_has_less_than_its_part_is_waiting(leases: tuple[LeaseBook, Pass]) -> None:
    book, _ = leases
    assert await claim(book, "a", 7, cap=8, part=4) == Held(7, 0)
    assert await claim(book, "b", 8, cap=8, part=4) == Held(1, 0)
    assert await claim(book, "a", 4, cap=8, part=4) == Held(4, 1)
    assert await claim(book, "b", 8, cap=8, part=4) == Held(4, 0), "its part; more is no claim"
    assert await claim(book, "a", 4, cap=8, part=4) == Held(4, 0)
    assert await claim(book, "b", 1, cap=8, part=4) == Held(1, 0), "it wants no more"
    assert await claim(book, "a", 4, cap=8, part=4) == Held(4, 0)


async def test_a_dead_worker_s_leases_expire_and_it_cannot_have_them_back(
    leases: tuple[LeaseBook, Pass],
) -> None:
    book, wait = leases
    assert await claim(book, "a", 3, lease=LEASE) == Held(3, 0)
    await wait(LEASE / 2)
    assert await claim(book, "b", 3, lease=LEASE) == Held(0, 0)
    await wait(LEASE / 2 + 0.05)
    assert await claim(book, "b", 2) == Held(2, 0)
    assert await claim(book, "a", 3) == Held(1, 0), "what is free, no more"


async def test_a_renewed_lease_lives_on(leases: tuple[LeaseBook, Pass]) -> None:
    book, wait = leases
    await claim(book, "a", 3, lease=LEASE)
    for _ in range(3):
        await wait(LEASE * 0.6)
        assert await claim(book, "a", 3, lease=LEASE) == Held(3, 0)
    assert await claim(book, "b", 1) == Held(0, 0)


async def test_a_lower_cap_takes_back_only_what_is_renewed(leases: tuple[LeaseBook, Pass]) -> None:
    book, _ = leases
    assert await claim(book, "a", 3) == Held(3, 0)
    assert await claim(book, "a", 3, cap=1) == Held(1, 0)
    assert await claim(book, "b", 1, cap=1) == Held(0, 0)


async def test_places_do_not_touch_each_other(leases: tuple[LeaseBook, Pass]) -> None:
    book, _ = leases
    both = [Claim("mx1", "one", 2, 2, 1), Claim("mx1", "two", 2, 2, 1)]
    assert await book.claim("a", both, LEASE) == [Held(2, 0), Held(2, 0)]


@pytest.mark.needs("redis")
@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    story=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(1, 4), st.integers(1, 3)),
        max_size=25,
    )
)
async def test_script_and_twin_agree_on_any_story(
    story: list[tuple[str, int, int, int]], redis_url: str
) -> None:
    redis = Redis.from_url(redis_url)
    await redis.delete(
        keys.connection_leases("mx1", "site"), keys.connection_wanting("mx1", "site")
    )
    script, twin = RedisLeases(redis), MemoryLeases(lambda: 0.0)
    held = dict.fromkeys("abc", 0)
    for worker, want, cap, part in story:
        claims = [Claim("mx1", "site", want, cap, part)]
        [one] = await script.claim(worker, claims, 60.0)
        [two] = await twin.claim(worker, claims, 60.0)
        assert one == two
        held[worker] = one.leases
    assert await redis.zcard(keys.connection_leases("mx1", "site")) == sum(held.values())
    await redis.aclose()


class Two:
    """Two workers over one book, a clock moved by hand, no connection ever opened."""

    def __init__(self) -> None:
        self.hand = Hand()
        book = MemoryLeases(lambda: self.hand.now)
        self.a, self.b = (
            Connections(book, name, lambda cap: -(-cap // 2), lambda: self.hand.now, LEASE)
            for name in "ab"
        )
        self.trimmed: list[int] = []

    async def renew(self, which: Connections) -> None:
        await which.renew(lambda _source, _site, keep: self.trimmed.append(keep))


async def test_a_place_earns_its_connections() -> None:
    hand = Hand()
    alone = Connections(
        MemoryLeases(lambda: hand.now), "a", lambda cap: cap, lambda: hand.now, LEASE
    )
    async with using(alone, 20, 20) as first:
        assert first == 5
        for _ in range(5 + 6 + 7):
            alone.told("mx1", "site", True)
        async with using(alone, 20, 20) as later:
            assert later in (7, 8)
        for _ in range(20):
            alone.told("mx1", "site", False)
        assert alone.allowed("mx1", "site") == 1, "one always stays"


def using(which: Connections, want: int = 8, cap: int = 8):  # type: ignore[no-untyped-def]  # a context
    return which.using("mx1", "site", want, cap, 0.0, lambda: True)


async def test_a_worker_starts_with_its_part_and_grows_while_nobody_waits() -> None:
    two = Two()
    async with using(two.a) as first:
        assert first == 4
        await two.renew(two.a)
        for _ in range(40):
            two.a.told("mx1", "site", True)
        await two.renew(two.a)
        assert two.a.allowed("mx1", "site") == 7, "one is kept free for who comes"
    await two.renew(two.a)
    assert two.a.allowed("mx1", "site") == 0, "nothing open, nothing wanted: given back"


async def test_a_worker_makes_room_for_one_that_waits() -> None:
    two = Two()
    async with using(two.a):
        for _ in range(40):
            two.a.told("mx1", "site", True)
        two.a.changed("mx1", "site", 4)
        await two.renew(two.a)
        two.a.changed("mx1", "site", 7)
        async with using(two.b) as one:
            assert one == 1, "at once"
        await two.renew(two.a)
        await two.renew(two.a)
        assert two.trimmed[-1] == 4
        assert two.a.allowed("mx1", "site") == 4, "it opens no more than that"
        async with using(two.b) as one:
            assert one == 1, "seven are open still"
        two.a.changed("mx1", "site", 4)
        await two.renew(two.a)
        async with using(two.b) as some:
            assert some == 4


async def test_a_lease_somebody_waits_for_goes_back_as_its_connection_closes() -> None:
    """Not at the next renewal."""
    two = Two()
    async with using(two.a):
        for _ in range(40):
            two.a.told("mx1", "site", True)
        await two.renew(two.a)
        two.a.changed("mx1", "site", 7)
        async with using(two.b) as one:
            assert one == 1
        await two.renew(two.a)
        await two.renew(two.a)
        for left in (6, 5, 4):
            two.a.changed("mx1", "site", left)
            for _ in range(5):
                await asyncio.sleep(0)  # the question is a task
        async with using(two.b) as some:
            assert some == 4


@pytest.mark.needs("redis")
async def test_questions_asked_at_once_do_not_take_from_each_other(
    redis_url: str,
) -> None:
    redis = Redis.from_url(redis_url)
    await redis.flushall()
    alone = Connections(RedisLeases(redis), "a", lambda cap: cap)
    seen = []

    async def converse() -> None:
        async with using(alone, 2, 8) as allowed:
            seen.append(allowed)
            await asyncio.sleep(0.02)

    await asyncio.gather(
        *(converse() for _ in range(20)), *(alone.renew(lambda *_: None) for _ in range(20))
    )
    assert min(seen) >= 1
    assert max(seen) == 2
    await redis.aclose()


async def test_a_lease_not_renewed_counts_for_nothing_here_either() -> None:
    two = Two()
    async with using(two.a):
        assert two.a.allowed("mx1", "site") == 4
        await two.hand.move(LEASE + 0.1)
        assert two.a.allowed("mx1", "site") == 0


def _part_of(rank: int) -> Callable[[int], int]:
    return lambda cap: cap // 3 + (rank < cap % 3)


@pytest.mark.parametrize("cap", [1, 2, 3, 8])
async def test_without_redis_the_parts_add_up_to_the_cap(cap: int) -> None:
    away = RedisLeases(Redis.from_url("unix:///nonexistent/mailweir.sock"))
    parts = []
    for rank in range(3):
        alone = Connections(away, "w", _part_of(rank))
        async with using(alone, 9, cap) as allowed:
            parts.append(allowed)
    assert sum(parts) == cap
