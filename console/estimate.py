"""When what waits should be sent: from what moves, what limits allow, and what waits before it (S22)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from mailweir.contracts.policy import Policy
from mailweir.contracts.snapshot import FastState, Snapshot
from router.lanes import path_rate
from router.policy.fairness import STEP_SHARE
from router.policy.isolation import serves


def lane_rates(
    lanes: Iterable[str], bucket: str, policy: Policy, snapshot: Snapshot, fast: FastState
) -> dict[str, float]:
    """Jobs per policy second the limits let through per lane, over all sources that serve the bucket;
    infinite for lanes of many small providers, whose limits do not add up."""
    sources = [name for name, buckets in serves(policy).items() if bucket in buckets]
    return {
        lane: math.inf
        if lane.startswith("~")
        else sum(path_rate(policy, snapshot, fast, source, lane, bucket) for source in sources)
        for lane in lanes
    }


def seconds(
    ahead: int, finished: float, in_lanes: Mapping[str, float], rates: Mapping[str, float]
) -> float | None:
    """Policy seconds until ``ahead`` jobs of a bucket, of them ``in_lanes`` per lane, are sent.

    ``finished``: jobs per policy second the bucket finishes now. The slower of what moves and what a
    lane's limits allow decides; None where nothing moves and no limit says how fast it could."""
    waits = []
    for lane, count in in_lanes.items():
        rate = rates.get(lane, math.inf)
        if count and rate == 0:
            return None  # suspended or broken: nobody knows for how long
        if count and rate < math.inf:
            waits.append(count / rate)
    if ahead and finished > 0:
        waits.append(ahead / finished)
    elif ahead and not waits:
        return None
    return max(waits, default=0.0)


def contended(own: int, better: int, lesser: int) -> float:
    """Jobs a lane sends until the ``own`` ones of a bucket are through, where others wait for the same
    sources (S22): a better bucket leaves it one job of five, to lesser ones it leaves one."""
    if better:
        return min(own / (1 - STEP_SHARE), own + better)
    if lesser:
        return min(own / STEP_SHARE, own + lesser)
    return own
