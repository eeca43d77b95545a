"""What a chunk waits in all: waits beside each other count once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.patience import Patience


class Hand:
    at = 100.0

    def now(self) -> float:
        return self.at


def test_waits_beside_each_other_count_once_and_one_after_another_add_up() -> None:
    hand = Hand()
    patience = Patience(5.0, hand.now)
    with patience.waiting():
        hand.at += 1.0
        with patience.waiting():
            hand.at += 1.0
        assert patience.left == 3.0
        hand.at += 0.5
    assert patience.left == 2.5
    hand.at += 60.0
    assert patience.left == 2.5, "who sends does not wait"
    with patience.waiting():
        hand.at += 9.0
        assert patience.left == 0.0
    assert patience.left == 0.0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=20))
def test_it_is_the_length_of_the_union(spans: list[tuple[int, int]]) -> None:
    """Any waits from a start for a while: what is spent is the time in which somebody waited."""
    hand = Hand()
    patience = Patience(1e6, hand.now)
    ends = [(start, start + length) for start, length in spans if length]
    open_waits = []
    for moment in range(75):
        hand.at = 100.0 + moment
        for start, end in ends:
            if start == moment:
                wait = patience.waiting()
                wait.__enter__()
                open_waits.append((end, wait))
        for end, wait in [one for one in open_waits if one[0] == moment]:
            wait.__exit__(None, None, None)
            open_waits.remove((end, wait))
    union = {moment for start, end in ends for moment in range(start, end)}
    assert patience.left == 1e6 - len(union)
