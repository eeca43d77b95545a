"""The live rate: finds a remote's limit, stays near it without sawing, and comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.policy import adaptive
from workers.policy.adaptive import Live, book


def against(limit: float, ceiling: float, seconds: int) -> tuple[list[float], float]:
    """Rates second by second against a remote that takes ``limit`` a second; share refused after
    the first half."""
    live, rates, carry = Live(), [], 0.0
    refused = sent = 0
    for second in range(seconds):
        rate = live.rate if live.rate is not None else ceiling
        carry += rate
        jobs, carry = int(carry), carry - int(carry)
        for i in range(jobs):
            slow = i >= limit
            live = book(live, ceiling, slow=slow)
            if second > seconds / 2:
                refused += slow
                sent += 1
        rates.append(rate)
    return rates, refused / max(1, sent)


def test_it_settles_near_the_remote_s_limit_without_sawing() -> None:
    rates, refused = against(limit=5.0, ceiling=10.0, seconds=3600)
    tail = rates[1800:]
    mean = sum(tail) / len(tail)
    assert 0.75 * 5 < mean < 1.1 * 5
    assert (max(tail) - min(tail)) / mean < 0.3, "no sawtooth"
    assert refused < 0.05


def test_it_reacts_within_ten_seconds() -> None:
    rates, _ = against(limit=5.0, ceiling=10.0, seconds=10)
    assert rates[-1] < 8.6


def test_it_returns_to_the_policy_s_rate() -> None:
    live = Live(2.0, 0.0, 2.4)
    seconds = 0
    while live.rate is not None:
        for _ in range(max(1, int(live.rate))):
            live = book(live, 10.0, slow=False)
        seconds += 1
        assert seconds < 3600
    assert seconds > 60, "step by step"


@given(st.lists(st.booleans(), max_size=3000), st.floats(0.02, 100))
def test_it_never_leaves_its_bounds(slows: list[bool], ceiling: float) -> None:
    live = Live()
    for slow in slows:
        live = book(live, ceiling, slow=slow)
        if live.rate is not None:
            assert adaptive.FLOOR * ceiling * 0.999 <= live.rate <= ceiling
