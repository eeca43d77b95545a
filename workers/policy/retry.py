"""When a deferred job is tried again: the curve and its jitter, apart from each other (S39)."""

from __future__ import annotations

from mailweir.contracts.policy import Retry

LAST_CHANCE_SHARE = 0.5
"""A retry that falls behind the deadline is pulled before it if half of the wait is left."""

LAST_CHANCE_MARGIN = 0.05
"""Share of the time left that stays free between the last try and the deadline."""


def step(retry: Retry, number: int) -> float:
    """Seconds of the schedule after attempt ``number`` (1 is the first); its last step repeats."""
    schedule = retry.schedule
    if not schedule:
        raise ValueError("a retry schedule needs at least one step")
    return schedule[min(max(number, 1), len(schedule)) - 1]


def jittered(seconds: float, share: float, chance: float) -> float:
    """``seconds`` moved by at most ``share`` of itself; ``chance`` 0..1, 0.5 leaves it alone."""
    return seconds * (1.0 + share * (2.0 * chance - 1.0))


def late(seconds: float, share: float, chance: float) -> float:
    """Like :func:`jittered`, never earlier: for times the remote named itself."""
    return seconds * (1.0 + share * chance)


def deadline(retry: Retry, accepted_at: float, expires_at: float | None) -> float:
    """When a job gives up by age: the bucket's ``max_age`` or its own ``expires_at``, the sooner."""
    by_age = accepted_at + retry.max_age
    return by_age if expires_at is None else min(by_age, expires_at)


def before(due: float, now: float, end: float, *, fixed: bool) -> float | None:
    """``due``, or a last try before ``end`` where ``due`` is too late, or None: give up.

    ``fixed``: the remote named the time itself, coming earlier would be refused again.
    """
    if due < end:
        return due
    left = end - now
    if fixed or left <= 0 or left < LAST_CHANCE_SHARE * (due - now):
        return None
    return end - LAST_CHANCE_MARGIN * left
