"""Whether a routed job may still go its way: reputation or an operator may have stopped it meanwhile. Pure.

The router has its answer when it routes; a chunk may wait in its queue, and a slow one is minutes in work.
"""

from __future__ import annotations

from mailweir.contracts.snapshot import Snapshot


def stopped(
    snapshot: Snapshot, source: str, pool: str, provider: str, bucket: str, tenant: str, now: float
) -> str | None:
    """Why such a job may not begin at policy time ``now``, or None."""
    path = snapshot.path(source, provider, bucket)
    if path.stopped(now):
        return f"{source} is {path.state} at {provider}"
    for subject in (
        f"source:{source}",
        f"pool:{pool}",
        f"provider:{provider}",
        f"bucket:{bucket}",
        f"tenant:{tenant}",
    ):
        if snapshot.paused.get(subject, 0.0) > now:
            return f"{subject} is paused"
    return None
