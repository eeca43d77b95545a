"""Fair claiming: which waiting jobs the router takes next, when not all find room.

Priority 1 goes before 10, waiting lifts a flow by one step per ``ageing`` seconds, so nobody starves.
Within a step engaged recipients go first (S22), then flows share by tenant (weighted), then by lane, each
round taking one job from the tenant that has had least for its weight.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar


class FlowLike(Protocol):
    """What a flow must tell (``mailweir.spool.store.Flow``)."""

    @property
    def lane(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def head_due(self) -> float: ...
    @property
    def engaged(self) -> bool: ...


F = TypeVar("F", bound=FlowLike)

STEP_SHARE = 0.8  # of the room left, while worse steps wait too
QUANTUM = 10  # jobs granted at a time


def step(priority: int, waited: float, ageing: float) -> int:
    """The effective priority: 1 is first; every ``ageing`` policy seconds of waiting lift by one,
    without end, so that whatever waits is first some day."""
    return priority - int(max(waited, 0.0) // ageing)


def plan(
    flows: Sequence[F],
    room: int,
    now: float,
    lane_room: Mapping[str, int],
    tenant_weights: Mapping[str, float] | None = None,
    ageing: float = 600.0,
    *,
    before: Mapping[str, float] | None = None,
) -> list[tuple[F, int]]:
    """How many jobs to claim from which flows, best first; the sum is at most ``room``.

    ``lane_room`` bounds a lane (a missing lane is bounded by ``room`` only): what its paths can take
    soon, so that a slow provider never fills the window. ``tenant_weights`` are shares (default 1).
    ``before``: what :func:`served` said of the call before. How many jobs a flow holds is not known here:
    a flow with fewer than its grant simply leaves room for the next call. Flows whose head is not due get
    nothing.
    """
    weights = tenant_weights or {}
    left = max(room, 0)
    lanes = dict(lane_room)
    got = dict(before or {})
    picks: dict[int, int] = {}
    by_step: dict[tuple[int, bool], list[int]] = {}
    for i, flow in enumerate(flows):
        if flow.head_due <= now:
            level = (step(flow.priority, now - flow.head_due, ageing), not flow.engaged)
            by_step.setdefault(level, []).append(i)
    order: list[int] = []
    levels = sorted(by_step)
    for level in levels:
        # A better step may hold a single job behind its grant, so it never takes all the room while
        # others wait: a trickle of priority 1 must not turn every claim into a claim of one.
        grant = left if level == levels[-1] else math.ceil(left * STEP_SHARE)
        used = grant - _share(flows, by_step[level], grant, lanes, weights, got, picks, order)
        left -= used
        if left <= 0:
            break
    return [(flows[i], picks[i]) for i in order]


def served(
    picks: Sequence[tuple[F, int]],
    flows: Sequence[F],
    tenant_weights: Mapping[str, float] | None = None,
    before: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """What each waiting tenant had for its weight, counted from a quantum below the one that had most: where
    the room of a call is less than a quantum each, the next call begins with the others. Nobody is owed
    more: who was away, or had a full lane, has no claim to what went meanwhile."""
    weights = tenant_weights or {}
    had = dict(before or {})
    for flow, limit in picks:
        had[flow.tenant] = had.get(flow.tenant, 0.0) + limit / _weight(weights, flow.tenant)
    base = max(had.values(), default=0.0) - QUANTUM
    over = {flow.tenant: had.get(flow.tenant, 0.0) - base for flow in flows}
    return {tenant: more for tenant, more in over.items() if more > 0}


def _weight(weights: Mapping[str, float], tenant: str) -> float:
    return max(weights.get(tenant, 1.0), 0.001)


def _share(
    flows: Sequence[F],
    members: Sequence[int],
    left: int,
    lanes: dict[str, int],
    weights: Mapping[str, float],
    got: dict[str, float],
    picks: dict[int, int],
    order: list[int],
) -> int:
    """Give one step's flows their quanta, least served tenant first; what is left afterwards."""
    queues: dict[str, list[tuple[int, float, int]]] = {}
    for i in members:
        heapq.heappush(queues.setdefault(flows[i].tenant, []), (0, flows[i].head_due, i))
    tenants = [(got.get(tenant, 0.0), queue[0][1], tenant) for tenant, queue in queues.items()]
    heapq.heapify(tenants)
    while tenants and left > 0:
        has, _, tenant = heapq.heappop(tenants)
        queue = queues[tenant]
        rounds, due, i = heapq.heappop(queue)
        lane = flows[i].lane
        grant = min(QUANTUM, left, lanes.get(lane, left))
        if grant > 0:
            if i not in picks:
                order.append(i)
            picks[i] = picks.get(i, 0) + grant
            left -= grant
            if lane in lanes:
                lanes[lane] -= grant
            has += grant / _weight(weights, tenant)
            got[tenant] = has
            heapq.heappush(queue, (rounds + 1, due, i))
        if queue:  # a flow whose lane is full is not asked again
            heapq.heappush(tenants, (has, queue[0][1], tenant))
    return left
