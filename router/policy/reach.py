"""Which sources no worker reaches, by queue, from what the workers say of themselves (S34)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mailweir.contracts.heartbeat import Heartbeat
from mailweir.contracts.route import queue_name
from router.policy.compiled import CompiledPolicy

Unreached = Mapping[str, frozenset[str]]
"""Queue -> sources that every live worker of the queue says it cannot reach."""

NOBODY: Unreached = {}


class CutOff(NamedTuple):
    """A source that a job of the queue may need and no live worker of the queue reaches."""

    queue: str
    source: str


def unreached(beats: Iterable[Heartbeat], now: float) -> dict[str, frozenset[str]]:
    """Per queue the sources out of its fleet's reach; ``now``: real seconds, as in the heartbeats.

    A queue of which no live worker is heard has no entry: its fleet is down or only starting, and jobs
    wait in the queue as for any fleet. A worker that stops takes no more chunks, so it reaches nothing.
    """
    found: dict[str, frozenset[str]] = {}
    for beat in beats:
        if beat.stopping or not beat.alive(now):
            continue
        out = frozenset(beat.unreachable)
        for queue in beat.queues:
            found[queue] = found[queue] & out if queue in found else out
    return {queue: sources for queue, sources in found.items() if sources}


def fleets(beats: Iterable[Heartbeat], now: float) -> frozenset[frozenset[str]]:
    """The sets of queues that live workers serve together; ``now``: real seconds."""
    return frozenset(
        frozenset(beat.queues) for beat in beats if not beat.stopping and beat.alive(now)
    )


def cut_off(compiled: CompiledPolicy, out: Unreached) -> list[CutOff]:
    """The sources of pools that jobs would need in a queue whose fleet does not reach them."""
    regions = compiled.policy.regions
    found: dict[CutOff, None] = {}
    for pool in compiled.pools.values():
        for source in (*(member for member, _ in pool.members), *pool.relays):
            region = (source.region or pool.pool.region or regions[0]) if regions else None
            for bucket in sorted(source.buckets):
                for throttled in (False, True):
                    queue = queue_name(bucket, throttled=throttled, region=region)
                    if source.name in out.get(queue, ()):
                        found[CutOff(queue, source.name)] = None
    return list(found)
