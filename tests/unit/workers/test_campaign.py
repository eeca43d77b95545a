"""A campaign that bounces is slowed, one that got better comes back, and neither saws (S32)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.policy.campaign import FLOOR, SAMPLE, WINDOW, Campaign, book, limit


def windows(state: Campaign, count: int, sent: int, bounced: int) -> Campaign:
    for _ in range(count):
        state = book(state, sent, bounced, (state.begun or 0.0) + WINDOW)
    return state


def test_too_many_bounces_halve_the_rate_when_it_is_certain() -> None:
    assert windows(Campaign(0.0), 1, 95, 5).rate is None
    slowed = windows(Campaign(0.0), 1, 540, 60)
    assert (slowed.rate, slowed.base) == (5.0, 10.0)
    assert str(limit(5.0)) == "300/min"


def test_a_window_that_may_be_chance_stays_open_until_it_is_certain() -> None:
    state = windows(Campaign(0.0), 1, 94, 6)
    assert (state.rate, state.sent, state.bounced) == (None, 94, 6)
    rounds = 1
    while state.rate is None:
        state = book(state, 93, 7, WINDOW * (rounds := rounds + 1))
        assert rounds < 20, "seven in a hundred is found within 2,000"
    assert rounds > 1


def test_few_outcomes_are_no_verdict() -> None:
    state = book(Campaign(), 0, SAMPLE - 1, 0.0)
    assert book(state, 0, 0, 10 * WINDOW).rate is None
    assert book(state, 0, 1, WINDOW - 1).rate is None, "nor is a moment"


def test_a_list_that_stays_bad_is_halved_down_to_the_floor() -> None:
    state = windows(Campaign(0.0), 1, 540, 60)
    rates = []
    for _ in range(20):
        state = windows(state, 1, 540, 60)
        rates.append(state.rate)
    assert rates[:3] == [2.5, 1.25, 0.625]
    assert rates[-1] == FLOOR


def test_a_clean_list_gets_its_rate_back_and_the_limit_goes() -> None:
    state = windows(Campaign(0.0), 2, 540, 60)
    rates = []
    while state.rate is not None:
        rates.append(state.rate)
        state = windows(state, 1, 590, 10)
    assert rates == sorted(rates)
    assert 5 <= len(rates) <= 8
    assert state == Campaign(begun=state.begun)


def test_between_the_thresholds_nothing_moves() -> None:
    state = windows(Campaign(0.0), 1, 540, 60)
    again = windows(state, 5, 573, 27)
    assert again.rate == state.rate


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60), st.floats(0.0, 200.0))))
def test_the_rate_is_never_below_the_floor_nor_above_what_it_had(
    story: list[tuple[int, int, float]],
) -> None:
    state, now = Campaign(), 0.0
    for sent, bounced, wait in story:
        now += wait
        state = book(state, sent, bounced, now)
        if state.rate is not None:
            assert state.rate >= FLOOR
            assert state.rate <= max(state.base, FLOOR)
