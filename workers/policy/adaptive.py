"""The live rate of a path: additive up, multiplicative down, with 1/N feedback and hysteresis (S32).

After Postfix' SCHEDULER_README: each answer moves a credit by 1/N, N being the jobs of one step of
time at the present rate; the rate itself moves only when the credit has gone a whole step either way.
Near the rate that was last too fast it climbs ten times slower, so that it settles instead of
sawing. Bounded by the policy's rate above and :data:`FLOOR` of it below. ``book.lua`` is the twin.
"""

from __future__ import annotations

import msgspec

STEP_SECONDS = 10.0
"""One step up takes at least so many seconds of clean answers."""
UP = 0.05
"""Step up, as a share of the policy's rate."""
UP_NEAR = 0.005
"""Step up near the rate that was last too fast."""
NEAR = (0.8, 1.1)
"""What counts as near it; above, the limit is gone and the climb is fast again."""
DOWN = 0.85
SLOW_WEIGHT = 8.0
"""One "slow down" weighs as many good answers."""
FLOOR = 0.01
SPENT = 0.1
"""Down to this share of the policy's rate a remote that asks for less is obeyed by the rate alone;
below it, and for a probe, its asking counts as a failure for the breaker."""


class Live(msgspec.Struct, frozen=True):
    """State: ``rate`` jobs a second, None while the policy's own rate holds."""

    rate: float | None = None
    credit: float = 0.0
    limit: float = 0.0  # rate that was last too fast; 0: never


def spent(state: Live, ceiling: float) -> bool:
    """Whether the rate has given what it can, so that the breaker must judge."""
    return state.rate is not None and state.rate <= SPENT * ceiling


def book(state: Live, ceiling: float, *, slow: bool) -> Live:
    """The state after an accepted (or slowed) attempt; ``ceiling`` is the policy's rate, jobs/s."""
    rate = min(state.rate if state.rate is not None else ceiling, ceiling)
    step = max(1.0, rate * STEP_SECONDS)
    if slow:
        credit = min(state.credit, 0.0) - SLOW_WEIGHT / step
        if credit > -1.0:
            return Live(rate, credit, state.limit)
        return Live(max(rate * DOWN, FLOOR * ceiling), 0.0, rate)
    if state.rate is None:
        return state
    credit = state.credit + 1.0 / step
    if credit < 1.0:
        return Live(rate, credit, state.limit)
    near = NEAR[0] * state.limit <= rate <= NEAR[1] * state.limit
    rate += (UP_NEAR if near else UP) * ceiling
    if rate >= ceiling:
        return Live(None, 0.0, 0.0)
    return Live(rate, 0.0, state.limit)
