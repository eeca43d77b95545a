"""How many jobs of a lane (provider, or a group of small ones) the window may hold.

A path's share is what its live rate allows in ten seconds, so a slow provider never fills the window.
Lanes of unknown providers hold many sites with a limit each, so their share is learnt: it halves when
most of what was claimed had waited for a throttle before, and doubles when none had.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mailweir.contracts.policy import Policy
from mailweir.contracts.snapshot import FastState, Snapshot
from router.policy.fairness import STEP_SHARE

SECONDS = 10.0
"""Policy seconds of a path's work inside the window."""

LEAST = 5
"""A lane may always try a few: the answer is how we learn that it is free again."""


def path_rate(
    policy: Policy, snapshot: Snapshot, fast: FastState, source: str, provider: str, bucket: str
) -> float:
    """Jobs per policy second a path takes now; 0 while its breaker is open or it is suspended."""
    state = snapshot.path(source, provider, bucket)
    live = fast.path(source, provider)
    if live.breaker == "open" or state.state in ("suspended", "paused"):
        return 0.0
    limits = policy.providers.get(provider)
    if limits is None:
        return float("inf")
    cold = state.cap_day is not None
    rate = (limits.cold_rate if cold else limits.rate).rate
    if live.rate is not None:
        rate = min(rate, live.rate)
    if state.cap_hour is not None and live.used_hour >= state.cap_hour:
        return 0.0
    if state.cap_day is not None and live.used_day >= state.cap_day:
        return 0.0
    return rate


class Rival(NamedTuple):
    """Another bucket whose jobs may need the same sources."""

    goes_first: bool
    due: frozenset[str]  # lanes in which it has due jobs
    waiting: Mapping[str, int]  # its jobs dispatched and not yet taken, per lane


class LaneShares:
    """Room per lane for one bucket, from the policy's rates and from experience."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._learnt: dict[str, int] = {}

    def room(
        self,
        lanes: Iterable[str],
        sources: Iterable[str],
        bucket: str,
        policy: Policy,
        snapshot: Snapshot,
        fast: FastState,
        waiting: Mapping[str, int],
        rivals: Sequence[Rival] = (),
    ) -> dict[str, int]:
        """Jobs each lane may still get; ``waiting``: its jobs already dispatched and not yet taken.
        ``rivals``: other buckets that use the same sources."""
        names = tuple(sources)
        rooms = {}
        for lane in lanes:
            allowed = self._learnt.get(lane, self._largest)
            if not lane.startswith("~"):
                rate = sum(path_rate(policy, snapshot, fast, s, lane, bucket) for s in names)
                if rate * SECONDS < allowed:
                    allowed = max(LEAST, int(rate * SECONDS))
                    for rival in rivals:
                        if rival.goes_first and lane in rival.due:
                            allowed = max(LEAST, math.ceil(allowed * (1 - STEP_SHARE)))
                        else:
                            allowed = max(LEAST, allowed - rival.waiting.get(lane, 0))
            rooms[lane] = max(0, allowed - waiting.get(lane, 0))
        return rooms

    def learn(self, claimed: Mapping[str, int], waited: Mapping[str, int]) -> None:
        """After a batch: jobs claimed per lane, and those of them that had waited for a throttle."""
        for lane, count in claimed.items():
            before = self._learnt.get(lane, self._largest)
            if 2 * waited.get(lane, 0) > count:
                self._learnt[lane] = max(LEAST, min(before, 2 * count) // 2)
            elif not waited.get(lane):
                grown = before * 2
                if grown >= self._largest:
                    self._learnt.pop(lane, None)
                else:
                    self._learnt[lane] = grown
