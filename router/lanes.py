"""How many jobs of a lane (provider, or a group of small ones) the window may hold, and how many go a second.

A path's share of the window is what its live rate allows in ten seconds, so a slow provider never fills
it. What binds may be another limit, and lanes of unknown providers hold many sites with a limit each; so
workers count what a throttle sent back to wait, and a lane of which much comes back gets no more than a
little over what went (:class:`Paces`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from mailweir.contracts.policy import Policy
from mailweir.contracts.snapshot import FastState, Snapshot
from router.policy.fairness import STEP_SHARE

SECONDS = 10.0
"""Policy seconds of a path's work inside the window."""

LEAST = 5
"""A lane may always try a few: the answer is how we learn that it is free again."""

FLOOR = 100
"""The slowest pace, jobs a slot (``keys.FLEET_SLOT``): a shallow bucket sends back what comes in bursts,
however little it is."""

MUCH = 0.2
"""Share of what was dispatched that may come back without the pace being held."""

OVER = 1.5
"""A held pace, over what went: a limit that has risen is noticed by less coming back."""

FASTER = 1.5
"""A pace grows so each slot in which it was used and little came back."""

USED = 0.5
"""Share of a pace that must have gone to say that it was used."""

FORGOTTEN = 15
"""Slots without much coming back after which a lane is no longer held: longer than places reach ahead
(``workers.policy.tokens.AHEAD``), so that who was sent back there has come again."""

STEPS = 20
"""Parts of a slot in which a pace is spent. A bucket holds the tokens of half a second: what comes in longer
pulses than that finds some of them run over."""


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


class Paces:
    """How many jobs of each lane go in a slot of time, for one bucket. A lane is not held until it shows
    that it must be."""

    def __init__(self, largest: int) -> None:
        """``largest``: the pace of a lane that is not held."""
        self._largest = largest
        self._paces: dict[str, int] = {}
        self._held_at: dict[str, int] = {}  # slot in which much came back last
        self._slot = 0
        self._gone: dict[str, int] = {}  # in this slot
        self._before: tuple[Mapping[str, int], Mapping[str, int]] = (
            {},
            {},
        )  # gone, back: the one before

    def turn(self, slot: int, sent_back: Callable[[int], Mapping[str, int]]) -> None:
        """In a new slot, judge the two before it: a job comes back up to seconds after it went.
        ``sent_back(slot)``: per lane."""
        if slot == self._slot:
            return
        if slot > self._slot + 1:
            self._before = ({}, {})
        back = sent_back(self._slot) if self._gone or self._paces else {}
        for lane in self._gone.keys() | self._paces.keys():
            some = [jobs.get(lane, 0) for jobs in (self._gone, back, *self._before)]
            self._judge(lane, *some)
        self._before = (self._gone, back)
        for lane in [lane for lane, at in self._held_at.items() if slot - at > FORGOTTEN]:
            del self._paces[lane], self._held_at[lane]
        self._slot, self._gone = slot, {}

    def _judge(self, lane: str, gone: int, back: int, gone_before: int, back_before: int) -> None:
        went = gone + gone_before - back - back_before
        if back + back_before > MUCH * (gone + gone_before):
            self._paces[lane] = max(FLOOR, int(OVER * went / (2 if gone_before else 1)))
            self._held_at[lane] = self._slot
        elif gone >= USED * self._paces.get(lane, math.inf):
            self._paces[lane] = int(self._paces[lane] * FASTER)

    def gone(self, jobs: Mapping[str, int]) -> None:
        """So many were dispatched, per lane."""
        for lane, count in jobs.items():
            self._gone[lane] = self._gone.get(lane, 0) + count

    def left(self, lane: str, into: float) -> int | None:
        """Jobs that may go now, ``into`` a slot (0 to 1); None: any number."""
        pace = self._paces.get(lane)
        if pace is None:
            return None
        part = math.ceil(pace * min(STEPS, int(into * STEPS) + 1) / STEPS)
        return max(0, part - self._gone.get(lane, 0))


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
