"""Slow start: five connections first, one more for every round of taken mails, bounded both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.policy.concurrency import START, after, aim, kept_free, part


def test_a_round_of_taken_mails_is_worth_a_connection() -> None:
    window = START
    mails = 0
    while window < 20:
        window = after(window, 20, taken=True)
        mails += 1
    assert 170 <= mails <= 200, "about the sum of 5 to 19"


@given(st.lists(st.booleans()), st.integers(0, 50))
def test_never_none_and_never_above_the_cap(story: list[bool], cap: int) -> None:
    window = START
    for taken in story:
        window = after(window, cap, taken=taken)
        assert 1 <= window <= max(cap, 1)


@pytest.mark.parametrize(
    ("cap", "part", "free"),
    [
        (10, 10, 0),
        (10, 5, 1),
        (10, 4, 2),
        (10, 1, 2),
        (8, 4, 1),
        (4, 2, 0),
        (1, 1, 0),
        (100, 50, 1),
    ],
)
def test_what_is_left_to_others(cap: int, part: int, free: int) -> None:
    assert kept_free(cap, part) == free
    assert part <= cap - free


@given(st.integers(0, 200), st.integers(1, 20), st.booleans())
def test_parts_add_up_to_the_cap_at_most(cap: int, alive: int, young: bool) -> None:
    parts = [part(cap, rank, alive, young=young) for rank in range(alive)]
    assert sum(parts) == cap or (young and alive == 1 and parts == [-(-cap // 2)])
    assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize(
    ("target", "wanted", "wanting", "aims"),
    [
        (5, 20, 0, 9),  # grows, one is kept free
        (9, 20, 0, 9),
        (5, 3, 0, 5),  # no use for more
        (9, 20, 1, 5),  # its part, while another waits for its own
        (9, 20, 3, 2),
        (1, 0, 9, 1),  # one always stays
    ],
)
def test_what_a_worker_aims_at(target: int, wanted: int, wanting: int, aims: int) -> None:
    assert aim(target, wanted, cap=10, part=5, wanting=wanting) == aims
