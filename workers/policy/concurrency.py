"""Slow start of a path: how many connections it has earned (S32), and what its workers leave free. Pure.

As Postfix' queue manager does (SCHEDULER_README, "Concurrency scheduling"): a destination begins with
few connections, each mail that is taken adds one N-th of one, N being the present number, each one
that fails for the host's sake takes a whole one away. One always stays: breakers and throttles decide
whether a path is used at all.
"""

from __future__ import annotations

START = 5.0
"""Postfix' ``initial_destination_concurrency``."""


def after(window: float, cap: int, *, taken: bool) -> float:
    """The number after a mail that was taken, or that failed for the host's sake; 1 to ``cap``."""
    moved = window + 1.0 / window if taken else window - 1.0
    return max(1.0, min(float(max(cap, 1)), moved))


def kept_free(cap: int, part: int) -> int:
    """Of a path's ``cap`` of connections, those a worker that grows beyond its ``part`` leaves to others who
    may come: one each, but no more than a fifth of all, since they may never come."""
    others = -(-cap // part) - 1
    return max(0, min(others, cap // 5))
