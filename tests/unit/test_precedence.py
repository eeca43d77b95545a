"""A lesser bucket yields to a better one that waits for the same workers, and never starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mailweir.contracts.job import Bucket
from router.precedence import FEWEST, LESS, Yielding, better, together

TURNS = st.lists(
    st.tuples(st.integers(0, 300), st.integers(0, 300), st.floats(0.0, 1.0)), max_size=60
)


@given(TURNS, st.floats(0.1, 20.0))
def test_it_gets_a_fifth_of_what_goes_and_its_floor(
    turns: list[tuple[int, int, float]], floor: float
) -> None:
    yielding, now, ahead, gone = Yielding(floor), 0.0, 0, 0
    for before, total, passed in turns:
        now += passed
        ahead += before
        room = yielding.room(total, before, now)
        assert 0 <= room <= total
        yielding.gone(room)
        gone += room
        assert gone <= ahead * LESS + now * floor + 1e-6


@given(st.integers(FEWEST, 300), st.floats(0.5, 20.0))
def test_it_gets_something_however_little_the_better_bucket_moves(total: int, floor: float) -> None:
    yielding, now, gone = Yielding(floor), 0.0, 0
    for _ in range(int(4 * FEWEST / floor) + 4):
        room = yielding.room(total, 0, now)
        yielding.gone(room)
        gone += room
        now += 1.0
    assert gone >= FEWEST


def test_it_yields_to_nobody_who_does_not_wait() -> None:
    yielding = Yielding(5.0)
    assert yielding.room(300, None, 1.0) == 300
    assert yielding.room(300, 100, 2.0) == int(100 * LESS)
    assert yielding.room(300, None, 3.0) == 300


def test_the_order_of_buckets_and_who_shares_workers() -> None:
    assert better(Bucket.TRANSACTIONAL) == ()
    assert better(Bucket.BULK) == (Bucket.TRANSACTIONAL, Bucket.MARKETING)
    fleets = [frozenset({"marketing", "bulk"}), frozenset({"transactional"})]
    assert together(fleets, "marketing", "bulk")
    assert not together(fleets, "transactional", "bulk")
