"""Judging shares from few observations: Beta posterior tails, CUSUM. No SciPy, no I/O."""

from __future__ import annotations

import math

_ITERATIONS = 300
_TINY = 1e-300


def _fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function (Numerical Recipes 6.4, Lentz's method)."""
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    h = d
    for m in range(1, _ITERATIONS):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 + numerator * d
            c = 1.0 + numerator / c
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = c if abs(c) > _TINY else _TINY
            h *= d * c
        if abs(d * c - 1.0) < 1e-10:
            break
    return h


def beta_below(a: float, b: float, x: float) -> float:
    """P(p <= x) for p ~ Beta(a, b): the regularised incomplete beta function."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x < (a + 1.0) / (a + b + 2.0):
        return min(1.0, front * _fraction(a, b, x) / a)
    return max(0.0, 1.0 - front * _fraction(b, a, 1.0 - x) / b)


def exceeds(k: float, n: float, threshold: float, prior: tuple[float, float]) -> float:
    """P(p > threshold) after ``k`` hits in ``n`` trials, from a Beta prior."""
    a, b = prior[0] + k, prior[1] + max(0.0, n - k)
    return 1.0 - beta_below(a, b, threshold)


def upper(k: float, n: float, prior: tuple[float, float], z: float = 0.84) -> float:
    """About the upper bound of the share: posterior mean and ``z`` standard deviations (0.84: 80 %)."""
    a, b = prior[0] + k, prior[1] + max(0.0, n - k)
    total = a + b
    mean = a / total
    return min(1.0, mean + z * math.sqrt(mean * (1.0 - mean) / (total + 1.0)))


def cusum_steps(p0: float, p1: float) -> tuple[float, float]:
    """What a hit and a miss add to the one-sided CUSUM that looks for a change from p0 to p1."""
    return math.log(p1 / p0), math.log((1.0 - p1) / (1.0 - p0))


def cusum(value: float, hit: bool, steps: tuple[float, float]) -> float:
    """Page's CUSUM (1954) on the Bernoulli log-likelihood ratio."""
    return max(0.0, value + steps[0 if hit else 1])
