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


def part(cap: int, rank: int, alive: int, *, young: bool) -> int:
    """What of a number the worker of this ``rank`` (from 0) among those ``alive`` may have; the parts add up
    to ``cap`` at most. A fleet starts together: a ``young`` worker that has heard of nobody else is not sure
    to be alone."""
    if young and alive == 1:
        alive = 2
    return cap // alive + (rank < cap % alive)


def aim(target: int, wanted: int, cap: int, part: int, wanting: int) -> int:
    """How many connections of a path a worker aims at, that aimed at ``target`` and has use for ``wanted``:
    fewer where ``wanting`` others wait for their part, its own ``part`` (at least 1) more where nobody does."""
    if wanting:
        return max(1, min(target, part, cap // (wanting + 1)))
    if wanted > target:
        return max(part, min(cap - kept_free(cap, part), target + part))
    return target


def kept_free(cap: int, part: int) -> int:
    """Of a path's ``cap`` of connections, those a worker that grows beyond its ``part`` leaves to others who
    may come: one each, but no more than a fifth of all, since they may never come."""
    others = -(-cap // part) - 1
    return max(0, min(others, cap // 5))
