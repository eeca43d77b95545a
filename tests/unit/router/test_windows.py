"""Time windows: zones, clock changes, midnight."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailweir.contracts.policy import Window
from router.policy.windows import is_open, next_opening

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("2026-07-31T23:00", True),  # Friday night
        ("2026-08-01T05:59", True),  # still Friday's window
        ("2026-08-01T06:00", False),
        ("2026-08-01T23:00", False),  # Saturday night
        ("2026-08-03T03:00", False),  # Sunday's night would have begun on Sunday
        ("2026-08-03T22:00", True),
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_it_began_on(when, expected):
    window = Window(zone=BERLIN, days=(0, 1, 2, 3, 4), start=22 * 60, end=6 * 60)
    assert is_open(window, at(when)) is expected


def test_the_opening_follows_the_clock_change():
    window = Window(zone=BERLIN, start=9 * 60, end=10 * 60)
    before, after = at("2026-10-24T12:00"), at("2026-10-25T12:00")  # clocks go back on the 25th
    assert next_opening(window, before) - at("2026-10-24T09:00") == 25 * 3600
    assert next_opening(window, after) - at("2026-10-25T09:00") == 24 * 3600


def test_an_opening_inside_the_spring_gap_is_after_it():
    window = Window(zone=BERLIN, start=2 * 60 + 30, end=5 * 60)
    opening = next_opening(window, at("2026-03-28T12:00"))
    assert datetime.fromtimestamp(opening, UTC).isoformat() == "2026-03-29T01:30:00+00:00"
    assert is_open(window, opening)


@given(
    st.sets(st.integers(0, 6), min_size=1),
    st.integers(0, 1439),
    st.integers(1, 1440),
    st.integers(1_700_000_000, 1_900_000_000),
    st.sampled_from(("UTC", BERLIN, "America/New_York", "Asia/Kolkata")),
)
def test_an_opening_is_never_in_the_past_and_at_most_nine_days_away(days, start, end, now, zone):
    if start == end:
        return
    window = Window(zone=zone, days=tuple(days), start=start, end=end)
    opening = next_opening(window, now)
    assert now <= opening <= now + 9 * 86400
    assert opening == now or not is_open(window, now)
