"""How many jobs of a lane are tried in a slot of time: a little over what no throttle sends back. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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
        # gone and back in the slot before
        self._before: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})

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
        tried, returned = gone + gone_before, back + back_before
        if not tried:
            return  # what comes back late says nothing of a pace nobody used
        if returned > MUCH * tried:
            went = tried - returned
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
