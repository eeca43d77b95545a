"""The breaker's machine, S36 to S38, in policy time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.policy import breaker
from workers.policy.breaker import LADDER, Breaker, Phase, book, probing, recheck, share
from workers.policy.outcome import PathEvent

BAD, GOOD, ANSWERED = PathEvent.BAD, PathEvent.GOOD, PathEvent.ANSWERED
T = 1_000_000.0


def told(state: Breaker, *events: PathEvent, at: float = T) -> Breaker:
    for event in events:
        state = book(state, event, at, 0.5)
    return state


def test_five_failures_in_a_row_open_it_for_sixty_seconds() -> None:
    assert told(Breaker(), *[BAD] * 4).phase is Phase.CLOSED
    state = told(Breaker(), *[BAD] * 5)
    assert (state.phase, state.until) == (Phase.OPEN, T + 60)
    assert share(state, T + 59) == 0
    assert probing(state, T + 60)


def test_over_half_of_twenty_in_thirty_seconds_open_it() -> None:
    mixed = [BAD, BAD, GOOD] * 6
    assert told(Breaker(), *mixed).phase is Phase.CLOSED, "18 are too few to judge by"
    assert told(Breaker(), *mixed, BAD, BAD).phase is Phase.OPEN


def test_half_is_not_over_half() -> None:
    assert told(Breaker(), *[GOOD, BAD] * 30).phase is Phase.CLOSED


def test_old_errors_are_forgotten() -> None:
    state = Breaker()
    for i in range(200):
        state = book(state, BAD if i % 2 else GOOD, T + i * 5, 0.5)
        state = book(state, GOOD, T + i * 5, 0.5)
    assert state.phase is Phase.CLOSED


@given(st.lists(st.sampled_from([ANSWERED, PathEvent.NEUTRAL]), max_size=200))
def test_recipients_faults_never_open_it(events: list[PathEvent]) -> None:
    assert told(Breaker(), *events).phase is Phase.CLOSED


def test_recipients_faults_do_not_hide_a_dying_path() -> None:
    events = [BAD, ANSWERED] * 5
    assert told(Breaker(), *events).phase is Phase.OPEN


def test_the_ladder_counts_from_the_opening() -> None:
    state = told(Breaker(), *[BAD] * 5)
    times = []
    for _ in range(8):
        state = book(state, BAD, state.until, 0.5)
        times.append(state.until - T)
    assert times == [300, 900, 1800, 3600, 14400, 28800, 43200, 57600]


@given(chance=st.floats(0, 1), step=st.integers(1, 12))
def test_rechecks_move_by_a_fifth_at_most(chance: float, step: int) -> None:
    exact = LADDER[min(step, 5)] + max(0, step - 5) * breaker.REPEAT
    _, at = recheck(T, step, T, chance)
    assert 0.8 * exact - 1e-6 <= at - T <= 1.2 * exact + 1e-6


def test_a_good_probe_trickles_then_ramps_then_closes() -> None:
    state = told(Breaker(), *[BAD] * 5)
    good = T + 70
    state = book(state, GOOD, good, 0.5)
    assert state.phase is Phase.BACK
    assert breaker.trickling(state, good + 179)
    assert share(state, good + 180) == pytest.approx(0.1)
    assert share(state, good + 180 + 450) == pytest.approx(0.55)
    assert share(state, good + 180 + 900) == 1
    closed = book(state, GOOD, good + 1081, 0.5)
    assert (closed.phase, closed.step) == (Phase.CLOSED, 0)


def test_a_failure_on_the_way_back_goes_to_the_next_step() -> None:
    state = told(Breaker(), *[BAD] * 5)
    state = book(state, GOOD, T + 70, 0.5)
    for at in (T + 100, T + 70 + 400):
        again = book(state, BAD, at, 0.5)
        assert again.phase is Phase.OPEN
        assert again.until > at
        assert again.step >= 1


def test_one_failure_among_many_good_does_not_end_a_ramp() -> None:
    state = told(Breaker(), *[BAD] * 5)
    state = book(state, GOOD, T + 60, 0.5)
    at = T + 60 + 600
    state = told(state, *[GOOD] * 50, at=at)
    assert told(state, BAD, at=at).phase is Phase.BACK
    assert told(state, *[BAD] * 4, at=at).phase is Phase.OPEN


def test_an_attempt_from_before_the_recheck_is_no_probe() -> None:
    state = told(Breaker(), *[BAD] * 5)
    late = book(state, GOOD, T + 100, 0.5, began=T - 5)
    assert late.phase is Phase.OPEN
    assert probing(late, T + 100)
