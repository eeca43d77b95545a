"""Weights move in bounded steps and come to rest."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from reputation.policy.weights import DEADBAND, DOWN, FLOOR, UP, published, towards

shares = st.floats(0.003, 1.0)


@given(shares, shares)
def test_one_step_is_bounded(value: float, target: float) -> None:
    new = towards(value, target, 1)
    assert value * DOWN - 1e-12 <= new <= value * UP + 1e-12


@given(shares, shares)
def test_constant_input_never_oscillates(value: float, target: float) -> None:
    path = [value]
    for _ in range(60):
        path.append(towards(path[-1], target, 1))
    changes = [b - a for a, b in pairwise(path) if b != a]
    assert all(c > 0 for c in changes) or all(c < 0 for c in changes)
    assert path[-1] == path[-2]
    assert abs(path[-1] - max(target, FLOOR * FLOOR)) <= DEADBAND * target + 1e-12


@given(shares, shares, st.integers(0, 20))
def test_many_steps_at_once_are_the_same_as_one_by_one(a: float, b: float, n: int) -> None:
    one_by_one = a
    for _ in range(n):
        one_by_one = towards(one_by_one, b, 1)
    assert towards(a, b, n) == one_by_one


def test_out_of_rotation_is_at_once_and_down_is_faster_than_up() -> None:
    assert towards(1.0, 0.0, 0) == 0.0
    down = next(n for n in range(50) if towards(1.0, 0.1, n) <= 0.11)
    up = next(n for n in range(50) if towards(0.1, 1.0, n) >= 0.9)
    assert down < up / 2


@given(shares, st.floats(0.1, 1.0))
def test_router_gets_the_effective_weight(effective: float, score: float) -> None:
    weight = published(effective, score)
    assert weight <= 2.0
    if weight < 2.0:
        assert abs(weight * score * score - effective) < 1e-9
