"""The share of traffic a path gets follows its score slowly: up x1.25, down x0.5 per step. Pure.

The router multiplies a source's share by ``weight * score**2``. What moves in bounded steps is that
product (the *effective* weight); :func:`published` divides the score out again.
"""

from __future__ import annotations

STEP_SECONDS = 120.0  # policy seconds between two steps
UP = 1.25
DOWN = 0.5
FLOOR = 0.05  # in rotation a path keeps so much of its share, or nothing would be learnt
DEADBAND = 0.02  # relative change below which the weight rests
MAX_STEPS = 40  # steps made up for after a long pause


def towards(effective: float, target: float, steps: int) -> float:
    """The effective weight after ``steps`` steps towards ``target``; never past it.

    A target of 0 (out of rotation) holds at once. The same target again and again is reached and
    kept: constant input never oscillates."""
    if target <= 0.0:
        return 0.0
    target = max(target, FLOOR * FLOOR)
    value = effective
    for _ in range(min(steps, MAX_STEPS)):
        if value <= 0.0:
            value = min(target, FLOOR * FLOOR)
        elif abs(target - value) <= DEADBAND * target:
            return value
        elif target > value:
            value = min(target, value * UP)
        else:
            value = max(target, value * DOWN)
    return value


def published(effective: float, score: float) -> float:
    """The snapshot's weight: ``effective / score**2``, at most 2 while the score has just fallen."""
    return min(2.0, effective / max(score, 0.05) ** 2)
