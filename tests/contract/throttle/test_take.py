"""Taking: all layers or none, the binding one named, exact times, places, the limit itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailweir.contracts.policy import Throttle as Limit
from tests.contract.throttle.conftest import START, Hand
from workers.policy import tokens
from workers.policy.outcome import PathEvent
from workers.throttle.layers import Ask, Layer, rate_layer
from workers.throttle.twin import MemoryThrottle
from workers.throttle.types import Booking, Grant, Limiter

WARM = Limit(600, 60)


def ask(*layers: Layer, limit: Limit = WARM, source: str = "mx1") -> Ask:
    path = rate_layer(f"path:{source}|gmail", limit, "path")
    return Ask(source, "gmail", (path, *layers))


async def take(limiter: Limiter, what: Ask, n: int, waiting: int = 0) -> Grant:
    [grant] = await limiter.take([(what, n)], [waiting])
    return grant


async def test_a_bucket_starts_empty_and_says_exactly_when_the_first_token_is_there(
    limiter: Limiter, clock: Hand
) -> None:
    what = ask()
    grant = await take(limiter, what, 1)
    assert grant.granted == 0
    assert grant.layer == "path:mx1|gmail"
    wait = 1 / tokens.shape(Limit(600, 60)).rate
    assert grant.available - START == pytest.approx(wait, abs=2e-5)
    clock.move(grant.available - clock.now() - 1e-4)
    assert (await take(limiter, what, 1)).granted == 0
    clock.move(2e-4)
    assert (await take(limiter, what, 1)).granted == 1


async def test_nothing_is_taken_anywhere_when_one_layer_refuses(
    limiter: Limiter, clock: Hand
) -> None:
    tight = rate_layer("tenant:a", Limit(1, 3600))
    await take(limiter, ask(tight), 1)
    clock.move(3700)
    assert (await take(limiter, ask(tight), 5)).granted == 1
    refused = await take(limiter, ask(tight), 5)
    assert refused.granted == 0
    assert refused.layer == "tenant:a"
    clock.move(10)
    free = await take(limiter, ask(), 100)
    assert free.granted == tokens.shape(Limit(600, 60)).depth, "the path lost nothing to the tenant"


async def test_askers_get_places_one_token_apart_at_most_ten_seconds_ahead(
    limiter: Limiter, clock: Hand
) -> None:
    what = ask(limit=Limit(60, 60))
    first = await take(limiter, what, 3)
    second = await take(limiter, what, 30)
    every = [*first.places, *second.places]
    step = 1 / tokens.shape(Limit(60, 60)).rate
    expected = [START + step + min(i * step, tokens.AHEAD) for i in range(33)]
    assert every == pytest.approx(expected, abs=1e-3)


async def test_who_came_back_too_late_stands_before_the_newcomers(
    limiter: Limiter, clock: Hand
) -> None:
    what = ask(limit=Limit(60, 60))
    step = 1 / tokens.shape(Limit(60, 60)).rate
    line = await take(limiter, what, 8)  # eight newcomers, a token apart
    [late] = await limiter.take([(what, 2)], [0], [True])
    [later] = await limiter.take([(what, 1)], [0], [True])
    newcomer = await take(limiter, what, 1)
    at = [START + step * n for n in range(1, 10)]
    assert line.places == pytest.approx(at[:8], abs=1e-3)
    assert late.places == pytest.approx(at[:2], abs=1e-3)
    assert later.places == pytest.approx(at[2:3], abs=1e-3), "they have a line of their own"
    assert newcomer.places == pytest.approx(at[8:9], abs=1e-3)


async def test_a_count_holds_for_its_slot_and_names_the_slot_s_end(
    limiter: Limiter, clock: Hand
) -> None:
    cap = Layer("caph:mx1|gmail|bulk", "count", 3, 3600)
    what = ask(cap, limit=Limit(6000, 60))
    await take(limiter, what, 1)
    clock.move(60)
    assert (await take(limiter, what, 2)).granted == 2
    assert (await take(limiter, what, 2)).granted == 1
    refused = await take(limiter, what, 2)
    assert refused.granted == 0
    assert refused.layer == cap.name
    end = (START // 3600 + 1) * 3600
    assert refused.available == pytest.approx(end, abs=1e-3)
    clock.move(end - clock.now())
    assert (await take(limiter, what, 2)).granted == 2


async def test_unused_tokens_go_back_to_every_layer(limiter: Limiter, clock: Hand) -> None:
    cap = Layer("capd:mx1|gmail|bulk", "count", 4, 86400)
    what = ask(cap)
    await take(limiter, what, 1)
    clock.move(60)
    grant = await take(limiter, what, 4)
    assert grant.granted == 4
    assert (await take(limiter, what, 1)).granted == 0
    await limiter.give_back(grant, 3)
    assert (await take(limiter, what, 9)).granted == 3


async def test_several_asks_share_one_call(limiter: Limiter, clock: Hand) -> None:
    one, two = ask(source="mx1"), ask(source="mx2", limit=Limit(10, 60))
    await limiter.take([(one, 1), (two, 1)])
    clock.move(60)
    grants = await limiter.take([(one, 9), (two, 9), (one, 9)])
    assert [g.granted for g in grants] == [5, 1, 0]


async def test_who_waits_is_promised_the_tokens_of_the_near_future(
    limiter: Limiter, clock: Hand
) -> None:
    what = ask(rate_layer("tenant:a", Limit(300, 60)))
    await take(limiter, what, 1)
    clock.move(60)
    tenant = tokens.shape(Limit(300, 60))  # the slower of the two
    depth, step = int(tenant.depth), 1 / tenant.rate
    first = await take(limiter, what, 50, waiting=50)
    assert first.granted == depth
    expected = [clock.now() + k * step for k in range(1, int(tokens.SOON / step) + 1)]
    assert expected, "the case says something"
    assert first.promised == pytest.approx(expected, abs=1e-3)
    nothing = await take(limiter, what, 5, waiting=5)
    assert (nothing.granted, nothing.promised) == (0, ())
    assert nothing.available == pytest.approx(expected[-1] + step, abs=1e-3)
    await limiter.give_back(first, len(expected))
    assert len((await take(limiter, what, 5, waiting=5)).promised) == min(5, len(expected))
    few = await take(limiter, ask(source="mx2"), 9, waiting=0)
    assert few.promised == (), "nobody waits"


async def test_a_path_in_trouble_promises_nothing(limiter: Limiter, clock: Hand) -> None:
    what = ask()
    await take(limiter, what, 1)
    clock.move(60)
    told = ((PathEvent.BAD, clock.now()),) * 5
    await limiter.book([Booking("mx1", "gmail", 9.6, told)])
    assert (await take(limiter, what, 9, waiting=9)).promised == ()
    clock.move(61)
    probe = await take(limiter, what, 9, waiting=9)
    assert (probe.granted, probe.promised) == (1, ())


LIMITS = st.tuples(st.integers(1, 5000), st.sampled_from([1.0, 10.0, 60.0, 3600.0]))


@given(
    limit=LIMITS,
    steps=st.lists(st.tuples(st.floats(0.0, 40.0), st.integers(1, 200)), min_size=1, max_size=60),
    waiting=st.sampled_from([0, 3, 200]),
)
async def test_no_window_ever_sees_more_than_the_limit(
    limit: tuple[int, float], steps: list[tuple[float, int]], waiting: int
) -> None:
    """The law of the depth rule, also for tokens used up to ``hold`` after they were taken."""
    clock = Hand(0.0)
    limiter = MemoryThrottle(clock.now)
    throttle = Limit(*limit)
    what = ask(limit=throttle)
    clock.move(10 * throttle.per)
    taken: list[tuple[float, int]] = []
    for wait, n in steps:
        clock.move(wait * throttle.per / 60.0)
        grant = await take(limiter, what, n, waiting)
        if grant.granted:
            taken.append((clock.now(), grant.granted))
        taken += [(at, 1) for at in grant.promised]
        if throttle.per >= 60:
            assert all(at <= clock.now() + tokens.HOLD_MAX for at in grant.promised)
    taken.sort()
    window = throttle.per + tokens.hold(throttle)
    for i, (begin, _) in enumerate(taken):
        inside = sum(n for at, n in taken[i:] if at < begin + window - 1e-6)
        assert inside <= throttle.count


@given(limit=LIMITS)
def test_the_depth_rule_costs_at_most_five_percent(limit: tuple[int, float]) -> None:
    throttle = Limit(*limit)
    form = tokens.shape(throttle)
    assert form.rate * throttle.per >= 0.95 * throttle.count
    window = throttle.per + tokens.hold(throttle)
    assert form.depth - 1 + math.ceil(round(form.rate * window, 6)) <= throttle.count


@pytest.mark.needs("redis")
async def test_a_path_that_may_not_be_tried_says_since_when(limiter: Limiter, clock: Hand) -> None:
    what = ask()
    await take(limiter, what, 1)
    clock.move(60)
    free = await take(limiter, what, 100)
    assert free.granted
    assert free.shut is None, "only too many at once"

    async def book(event: PathEvent, times: int = 1, hold: float = 0.0) -> None:
        told = ((event, clock.now()),) * times
        await limiter.book([Booking("mx1", "gmail", 9.6, told, hold)])

    await book(PathEvent.GOOD, hold=clock.now() + 20)
    asked = clock.now()
    clock.move(5)
    assert (await take(limiter, what, 1)).shut == pytest.approx(asked, abs=1e-3)
    clock.move(30)
    assert (await take(limiter, what, 1)).shut is None

    await book(PathEvent.BAD, times=5)
    opened = clock.now()
    clock.move(40)
    assert (await take(limiter, what, 1)).shut == pytest.approx(opened, abs=1e-3)
    clock.move(25)
    probe = await take(limiter, what, 3)
    assert (probe.granted, probe.probe) == (1, True)
    assert probe.shut == pytest.approx(clock.now(), abs=1e-3), "for the two who asked with it"
    assert (await take(limiter, what, 1)).shut == pytest.approx(clock.now(), abs=1e-3)

    await book(PathEvent.BAD)
    again = clock.now()
    clock.move(100)
    assert (await take(limiter, what, 1)).shut == pytest.approx(again, abs=1e-3)


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
async def test_script_and_twin_agree_on_any_story(data: st.DataObject, redis_url: str) -> None:
    """Takes, returns, bookings and waits in any order: the same grants, layers and times."""
    from redis.asyncio import Redis

    from mailweir.plumbing import keys
    from workers.throttle.shell import Throttle

    clock = Hand()
    redis = Redis.from_url(redis_url)
    await redis.flushall()
    await redis.set(keys.EPOCH, "one")
    await redis.set(keys.COUNTERS_READY, "one")
    script = Throttle(redis, clock, chance=lambda: 0.3)
    twin = MemoryThrottle(clock.now, speed=1e9, chance=lambda: 0.3)  # leases outlive the story
    cap = Layer("capd:x", "count", 40, 86400)
    asks = [
        ask(limit=Limit(600, 60)),
        ask(rate_layer("tenant:a", Limit(30, 60)), cap, limit=Limit(300, 60)),
        ask(rate_layer("global", Limit(900, 60)), source="mx2", limit=Limit(20, 60)),
    ]
    for limiter in (script, twin):  # both see the epoch now
        await take(limiter, asks[0], 1)
    last: tuple[Grant, Grant] | None = None
    for _ in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from(["take", "wait", "back", "book"])):
            case "wait":
                clock.move(data.draw(st.floats(0.001, 400.0)))
            case "take":
                what, n = data.draw(st.sampled_from(asks)), data.draw(st.integers(1, 30))
                waiting = data.draw(st.integers(0, n))
                a = await take(script, what, n, waiting)
                b = await take(twin, what, n, waiting)
                assert a.promised == pytest.approx(b.promised, abs=1e-3)
                assert (a.granted, a.layer, a.probe) == (b.granted, b.layer, b.probe)
                assert a.available == pytest.approx(b.available, abs=1e-3)
                assert a.places == pytest.approx(b.places, abs=1e-2)
                assert (a.shut is None) == (b.shut is None)
                if a.shut is not None and b.shut is not None:
                    # a probe's time is Redis' own, which this clock squeezes into now
                    assert a.shut == pytest.approx(b.shut, abs=1e-3) or a.shut == a.at
                last = (a, b)
            case "back" if last is not None and last[0].granted + len(last[0].promised):
                n = data.draw(st.integers(1, last[0].granted + len(last[0].promised)))
                await script.give_back(last[0], n)
                await twin.give_back(last[1], n)
                last = None
            case "book":
                events = data.draw(
                    st.lists(st.sampled_from(list(PathEvent)), min_size=1, max_size=30)
                )
                # an attempt begins after its grant; Redis' microseconds round a time up or down
                told = tuple((e, clock.now() + 0.001) for e in events)
                hold = clock.now() + data.draw(st.sampled_from([-1.0, 20.0]))
                source = data.draw(st.sampled_from(["mx1", "mx2"]))
                booking = Booking(source, "gmail", 9.6, told, hold)
                await script.book([booking])
                await twin.book([booking])
            case _:
                pass
    await redis.aclose()
