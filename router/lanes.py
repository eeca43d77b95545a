"""How many jobs of a lane (provider, or a group of small ones) the window may hold, and how many go a second.

A path's share of the window is what its live rate allows in ten seconds, so a slow provider never fills
it. What binds may be another limit, and lanes of unknown providers hold many sites with a limit each; so
workers count what a throttle sent back to wait, and a lane of which much comes back gets no more than a
little over what went (``router.policy.paces``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mailweir.contracts.policy import Policy
from mailweir.contracts.snapshot import FastState, Snapshot
from router.policy.fairness import STEP_SHARE
from router.policy.paces import Paces

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
        self.paces = Paces(largest)

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
        into: float = 0.0,
    ) -> dict[str, int]:
        """Jobs each lane may still get; ``waiting``: its jobs already dispatched and not yet taken.
        ``rivals``: other buckets that use the same sources. ``into``: see :meth:`Paces.left`."""
        names = tuple(sources)
        rooms = {}
        for lane in lanes:
            allowed = self._largest
            if not lane.startswith("~"):
                rate = sum(path_rate(policy, snapshot, fast, s, lane, bucket) for s in names)
                if rate * SECONDS < allowed:
                    allowed = max(LEAST, int(rate * SECONDS))
                    for rival in rivals:
                        if rival.goes_first and lane in rival.due:
                            allowed = max(LEAST, math.ceil(allowed * (1 - STEP_SHARE)))
                        else:
                            allowed = max(LEAST, allowed - rival.waiting.get(lane, 0))
            room = max(0, allowed - waiting.get(lane, 0))
            left = self.paces.left(lane, into)
            rooms[lane] = room if left is None else min(room, left)
        return rooms
