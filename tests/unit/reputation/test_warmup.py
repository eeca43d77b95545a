"""S53: earned days only, bounded growth, halving, idling; the figures of the row."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailweir.contracts.policy import Warmup
from reputation.policy.warmup import (
    DAY,
    BadPlan,
    Health,
    Plan,
    begin,
    caps,
    checked,
    curve,
    look,
    plan_for,
    used,
)

PLAN = Plan()
WELL = Health()
T0 = 20_000 * DAY


def test_curve_of_the_row() -> None:
    """50 a day, +20 %, at most +5,000: 20,000 a day in week 5."""
    found = curve(PLAN, 42)
    assert found[0] == 50
    reached = next(day for day, cap in enumerate(found, 1) if cap >= 20_000)
    assert 28 < reached <= 35
    assert max(b - a for a, b in pairwise(found)) <= 5001


def test_figures_of_the_facts() -> None:
    """deliverability 3.3: 100, +20 %, max +5,000: days 7, 14, 28, 35."""
    found = curve(Plan(start=100), 42)
    # "day d" of that table is d - 1 growths of the start, rounded
    assert found[6] == pytest.approx(299, abs=2)
    assert found[13] == pytest.approx(1070, abs=2)
    assert found[27] == pytest.approx(13_737, abs=5)
    assert found[34] == pytest.approx(43_485, abs=100)


@given(st.floats(1, 1000), st.floats(0.1, 0.3), st.floats(1, 10_000), st.integers(2, 120))
def test_growth_is_bounded(start: float, growth: float, step: float, days: int) -> None:
    found = curve(checked(Plan(start, growth, step)), days)
    for a, b in pairwise(found):
        assert a <= b <= max(a * (1 + growth), 0) + 2
        assert b - a <= step + 1


@pytest.mark.parametrize(
    "bad", [Plan(start=0), Plan(growth=0.5), Plan(growth=0.0), Plan(max_step=0)]
)
def test_bad_plans_are_named(bad: Plan) -> None:
    with pytest.raises(BadPlan, match=r"start|growth|max_step"):
        checked(bad)


def test_provider_numbers_win() -> None:
    policy = Warmup(by_provider={"outlook": {"growth": 0.1, "start": 20}})
    assert plan_for(policy, "outlook") == Plan(start=20, growth=0.1)
    assert plan_for(policy, "gmail") == PLAN


def test_only_used_days_count() -> None:
    w = begin(PLAN, T0)
    assert caps(look(w, PLAN, WELL, T0 + DAY))[0] == 50  # a day without a job earns nothing
    w = used(w, 24, T0, PLAN)
    assert caps(look(w, PLAN, WELL, T0 + DAY))[0] == 50  # less than half
    w = used(w, 1, T0, PLAN)
    assert caps(look(w, PLAN, WELL, T0 + DAY))[0] == 60


def test_halves_over_threshold_once_a_day_and_recovers() -> None:
    w, now = begin(PLAN, T0), T0
    for _ in range(20):
        w = look(used(w, caps(w)[0], now, PLAN), PLAN, WELL, now)
        now += DAY
    w = look(w, PLAN, WELL, now)
    before = w.cap
    bad = Health(breach=0.99, what="bounces 60 of 1000")
    w = look(w, PLAN, bad, now)
    assert w.cap == before / 2
    assert look(w, PLAN, bad, now + 3600).cap == before / 2
    w = look(w, PLAN, bad, now + DAY)
    assert w.cap == before / 4
    days = 0
    now += DAY
    while w.cap < before:
        w = used(w, caps(w)[0], now, PLAN)
        now += DAY
        w = look(w, PLAN, WELL, now)
        days += 1
    assert 8 <= days <= 10  # four times by steps of 20 %, and the held day


def test_one_suspicious_day_does_not_count() -> None:
    w = used(begin(PLAN, T0), 50, T0, PLAN)
    w = look(w, PLAN, Health(deferred=0.15, what="15 % deferred"), T0)
    assert look(w, PLAN, WELL, T0 + DAY).cap == 50


def test_idle_weeks() -> None:
    w, now = begin(PLAN, T0), T0
    for _ in range(15):
        w = look(used(w, caps(w)[0], now, PLAN), PLAN, WELL, now)
        now += DAY
    w = look(w, PLAN, WELL, now)
    rested = look(w, PLAN, WELL, now + 5 * DAY)
    assert rested.cap == w.cap
    assert look(w, PLAN, WELL, now + 10 * DAY).cap < w.cap
    cold = look(w, PLAN, WELL, now + 40 * DAY)
    assert cold.cap == PLAN.start
    assert "cold" in cold.reason


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 1), st.floats(0, 0.5)), max_size=80))
def test_caps_stay_in_their_bounds(days: list[tuple[int, float, float]]) -> None:
    w, now = begin(PLAN, T0), T0
    for jobs, breach, deferred in days:
        before = w.cap
        w = look(used(w, jobs, now, PLAN), PLAN, Health(breach, deferred), now)
        now += DAY
        w = look(w, PLAN, WELL, now)
        assert w.cap <= before * 1.2 + 1e-9
        assert w.cap >= min(PLAN.start, before)
        day, hour = caps(w)
        assert 1 <= hour <= day == max(1, math.floor(w.cap))
