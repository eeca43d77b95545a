"""The whole way of a path after a fault: ladder, one probe, trickle, ramp, and the live rate up to the policy's
again (S32, S37, S38). Both throttles tell the same story, second by second of policy time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from mailweir.contracts.policy import Throttle as Limit
from tests.contract.throttle.conftest import Hand
from workers.policy import breaker, tokens
from workers.policy.outcome import PathEvent
from workers.throttle.layers import Ask, rate_layer
from workers.throttle.types import Booking, Limiter

LIMIT = Limit(600, 60)
RATE = tokens.shape(LIMIT).rate
WHAT = Ask("mx1", "gmail", (rate_layer("path:mx1|gmail", LIMIT, "path"),))
STEP = 0.25  # policy seconds between two asks

Remote = Callable[[float], PathEvent]  # jobs a second it sees -> what it answers


async def send(limiter: Limiter, clock: Hand, seconds: float, remote: Remote) -> list[int]:
    """Jobs that went in each whole second, with more waiting all the time."""
    sent: list[int] = []
    for _ in range(round(seconds)):
        went = 0
        for _ in range(round(1 / STEP)):
            clock.move(STEP)
            [grant] = await limiter.take([(WHAT, 50)])
            if not grant.granted:
                continue
            recent = sent[-2:] or [0]
            told = remote((went + grant.granted + sum(recent)) / (1 + len(recent)))
            events = ((told, clock.now()),) * grant.granted
            await limiter.book([Booking("mx1", "gmail", RATE, events)])
            went += grant.granted
        sent.append(went)
    return sent


def good(_: float) -> PathEvent:
    return PathEvent.GOOD


def dead(_: float) -> PathEvent:
    return PathEvent.BAD


def per_second(sent: list[int], start: float, end: float) -> float:
    part = sent[round(start) : round(end)]
    return sum(part) / len(part)


async def test_from_the_opening_to_full_traffic(limiter: Limiter, clock: Hand) -> None:
    usual = await send(limiter, clock, 60, good)
    assert per_second(usual, 5, 60) == pytest.approx(RATE, rel=0.03)

    # 1 s of fault opens it; then one probe a step of the ladder: 1, 5, 15 min (+-20 %)
    down = await send(limiter, clock, 700, dead)
    assert sum(down) <= breaker.FAILURES + 5 + 2, "a bucketful and two probes"

    back = await send(limiter, clock, 480, good)
    first = next(i for i, n in enumerate(back) if n)
    assert 0.8 * 900 - 702 <= first <= 1.2 * 900 - 690, "the third step of the ladder"
    back += await send(limiter, clock, first + 180 + 900 + 60 - 480, good)
    trickle, ramp = first + 1, first + 181
    assert sum(back[trickle:ramp]) <= 6 * 3 + 1, "6 a minute for 3 min"
    for part in (0.0, 0.25, 0.5, 0.75):
        middle = ramp + (part + 0.125) * 900
        share = per_second(back, middle - 60, middle + 60) / RATE
        assert share == pytest.approx(0.1 + 0.9 * (part + 0.125), abs=0.04)
    assert per_second(back, ramp + 905, ramp + 955) == pytest.approx(RATE, rel=0.03)

    # as good as new: the next opening begins at the foot of the ladder
    await send(limiter, clock, 3, dead)
    quiet = await send(limiter, clock, 75, good)
    assert next(i for i, n in enumerate(quiet) if n) <= 61


async def test_a_failure_on_the_ramp_waits_for_the_next_step(limiter: Limiter, clock: Hand) -> None:
    await send(limiter, clock, 20, good)
    await send(limiter, clock, 3, dead)
    await send(limiter, clock, 60 + 180 + 60, good)
    await send(limiter, clock, 10, dead)
    rest = await send(limiter, clock, 900, good)
    first = next(i for i, n in enumerate(rest) if n)
    since_opening = first + 60 + 180 + 60 + 10
    assert 0.8 * 900 - 15 <= since_opening <= 1.2 * 900 + 15, "15 min: 5 min are over"


async def test_the_rate_a_remote_talked_down_comes_back(limiter: Limiter, clock: Hand) -> None:
    def grumpy(seen: float) -> PathEvent:
        return PathEvent.SLOW if seen > 0.3 * RATE else PathEvent.GOOD

    await send(limiter, clock, 30, good)
    low = await send(limiter, clock, 900, grumpy)
    settled = per_second(low, 600, 900)
    assert 0.2 * RATE <= settled <= 0.4 * RATE, "near what the remote wants"
    steps = [per_second(low, at, at + 30) for at in range(600, 900, 30)]
    assert max(steps) - min(steps) <= 0.15 * RATE, "no sawtooth"

    up = await send(limiter, clock, 1200, good)
    assert per_second(up, 1140, 1200) == pytest.approx(RATE, rel=0.03), "the policy's rate again"
    means = [per_second(up, at, at + 60) for at in range(0, 1200, 60)]
    assert all(a <= b + 0.6 for a, b in pairwise(means)), "never down on the way"


async def test_slowed_then_dead_then_well_again(limiter: Limiter, clock: Hand) -> None:
    """A path whose live rate was cut before it opened reaches full traffic, too: later, not never."""

    def never(seen: float) -> PathEvent:
        return PathEvent.SLOW if seen > 0.05 * RATE else PathEvent.GOOD

    await send(limiter, clock, 30, good)
    await send(limiter, clock, 300, never)
    await send(limiter, clock, 30, dead)
    back = await send(limiter, clock, 3600, good)
    assert per_second(back, 3500, 3600) == pytest.approx(RATE, rel=0.03)
    full = next(at for at in range(0, 3540, 60) if per_second(back, at, at + 60) > 0.95 * RATE)
    assert full <= 60 + 180 + 900 + 900, "within a quarter of an hour after the ramp"
