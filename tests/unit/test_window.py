"""The window follows the fleet, between its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.window import finished_lately, size


def test_window_is_twice_the_last_ten_seconds_within_bounds() -> None:
    assert size(0, 200, 20_000) == 200
    assert size(3_000, 200, 20_000) == 6_000
    assert size(50_000, 200, 20_000) == 20_000


def test_a_slot_fades_out_as_the_next_fills() -> None:
    assert finished_lately({9: 100}, now=100.0) == 100
    assert finished_lately({9: 100, 10: 30}, now=105.0) == 80
    assert finished_lately({9: 100}, now=110.0) == 0


@given(st.floats(0, 1e6), st.integers(0, 10_000), st.integers(0, 10_000))
def test_never_negative_and_never_above_both_slots(now: float, before: int, running: int) -> None:
    slot = int(now // 10)
    assert 0 <= finished_lately({slot - 1: before, slot: running}, now) <= before + running
