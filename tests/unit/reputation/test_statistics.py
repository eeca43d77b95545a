"""Tails and bounds against figures of deliverability 4.2 and against exact sums."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reputation.policy.statistics import beta_below, cusum, cusum_steps, exceeds, upper


@pytest.mark.parametrize(
    ("k", "n", "threshold", "prior", "expected"),
    [  # figures of the facts file, to their two digits
        (2, 50, 0.02, (1, 99), 0.42),
        (5, 100, 0.02, (1, 99), 0.79),
        (8, 200, 0.02, (1, 99), 0.85),
        (30, 1000, 0.02, (1, 99), 0.96),
        (3, 1000, 0.001, (0.5, 999.5), 0.78),
        (4, 1000, 0.001, (0.5, 999.5), 0.91),
    ],
)
def test_posterior_tails(
    k: int, n: int, threshold: float, prior: tuple[float, float], expected: float
) -> None:
    assert exceeds(k, n, threshold, prior) == pytest.approx(expected, abs=0.011)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.001, 0.999))
def test_beta_is_the_binomial_tail(a: int, b: int, x: float) -> None:
    """I_x(a, b) = P(Binomial(a + b - 1, x) >= a), an exact sum for whole numbers."""
    n = a + b - 1
    tail = sum(math.comb(n, j) * x**j * (1 - x) ** (n - j) for j in range(a, n + 1))
    assert beta_below(a, b, x) == pytest.approx(tail, abs=1e-9)


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.001, 0.5))
def test_more_hits_never_make_a_breach_less_likely(k: int, more: int, threshold: float) -> None:
    n = k + more + 1
    assert exceeds(k + 1, n, threshold, (1, 99)) >= exceeds(k, n, threshold, (1, 99)) - 1e-12
    assert upper(k + 1, n, (1, 99)) >= upper(k, n, (1, 99))


@given(st.lists(st.booleans(), max_size=200))
def test_cusum_never_negative_and_rises_only_by_hits(hits: list[bool]) -> None:
    steps, value = cusum_steps(0.01, 0.04), 0.0
    for hit in hits:
        new = cusum(value, hit, steps)
        assert new >= 0.0
        assert (new > value) == hit
        value = new
