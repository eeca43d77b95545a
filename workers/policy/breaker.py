"""The breaker of a path: one machine for S36, S37 and S38.

closed -> open after 5 failures in a row or over half of at least 20 attempts in 30 s; open -> half-open
at the ladder's next time since opening; one probe at a time; a good probe -> trickle (6 jobs a
minute), 3 min without failure -> ramp from 10 % to 100 % in 15 min -> closed. A failure on the way
back opens it until the next step of the ladder. Times are policy seconds. ``book.lua`` does the
same arithmetic in Redis, the only writer of a path's state; this is its twin and what tests read.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from workers.policy.outcome import PathEvent

FAILURES = 5
WINDOW = 30.0
SAMPLE = 20
SHARE = 0.5
LADDER = (60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0)
"""Rechecks, seconds since opening; after the last one every :data:`REPEAT` seconds (S37)."""
REPEAT = 14400.0
JITTER = 0.2
TRICKLE = 0.1
"""Jobs a second after a good probe: 6 a minute."""
TRICKLE_SECONDS = 180.0
RAMP_START = 0.1
RAMP_SECONDS = 900.0
RAMP_ERRORS = 0.05
"""While ramping, so many errors in the window are a failure; one error among few jobs is one."""


class Phase(StrEnum):
    """Where the machine stands. Half-open is ``OPEN`` after ``until``."""

    CLOSED = "closed"
    OPEN = "open"
    BACK = "back"  # after a good probe: trickle, then ramp


class Breaker(msgspec.Struct, frozen=True):
    """State of one path's breaker."""

    phase: Phase = Phase.CLOSED
    streak: int = 0  # failures in a row
    slot: int = 0  # current half window: floor(now / 15 s)
    good: tuple[int, int] = (0, 0)  # this half window, the one before
    bad: tuple[int, int] = (0, 0)
    opened: float = 0.0
    step: int = 0  # ladder step the path waits for, or waited for
    until: float = 0.0  # open: next probe
    back: float = 0.0  # time of the good probe


def book(
    state: Breaker, event: PathEvent, now: float, chance: float, began: float | None = None
) -> Breaker:
    """The state after an attempt that ``began`` then (default: now) and ended now.

    ``chance`` 0..1 jitters the next recheck. An attempt from before a probe was allowed is no probe.
    """
    began = now if began is None else began
    state = closed_when_done(state, now)
    if event is PathEvent.NEUTRAL:
        return state
    failed = event in (PathEvent.BAD, PathEvent.SLOW)
    if event is PathEvent.ANSWERED and state.phase is not Phase.OPEN:
        return state  # recipients' faults neither open a breaker nor hide a dying path
    state = _count(state, failed, now)
    match state.phase:
        case Phase.CLOSED:
            if failed and (state.streak >= FAILURES or _share_exceeded(state)):
                return _open(state, now, now, 0, chance)
            return state
        case Phase.OPEN:
            if began < state.until:
                return state  # on its way since before the recheck
            if failed:
                return _open(state, now, state.opened, state.step + 1, chance)
            return msgspec.structs.replace(
                state, phase=Phase.BACK, back=now, streak=0, good=(0, 0), bad=(0, 0)
            )
        case Phase.BACK:
            if began < state.back:
                return state
            if failed and (now < state.back + TRICKLE_SECONDS or _ramp_failed(state)):
                return _open(state, now, state.opened, state.step + 1, chance)
            return state


def closed_when_done(state: Breaker, now: float) -> Breaker:
    """A ramp that reached 100 % is a closed breaker that has forgotten its opening."""
    if state.phase is Phase.BACK and now >= state.back + TRICKLE_SECONDS + RAMP_SECONDS:
        return msgspec.structs.replace(state, phase=Phase.CLOSED, step=0, streak=0)
    return state


def share(state: Breaker, now: float) -> float:
    """Share of its rate a path may use now: 0 while open, 1 when closed, the ramp between.

    During the trickle it is 1: there :data:`TRICKLE` binds as a token bucket of its own.
    """
    match state.phase:
        case Phase.CLOSED:
            return 1.0
        case Phase.OPEN:
            return 0.0
        case Phase.BACK:
            gone = now - state.back - TRICKLE_SECONDS
            if gone < 0:
                return 1.0
            return min(1.0, RAMP_START + (1.0 - RAMP_START) * gone / RAMP_SECONDS)


def probing(state: Breaker, now: float) -> bool:
    """Half-open: one probe may go, if nobody else holds its lease."""
    return state.phase is Phase.OPEN and now >= state.until


def trickling(state: Breaker, now: float) -> bool:
    """Between a good probe and the ramp."""
    return state.phase is Phase.BACK and now < state.back + TRICKLE_SECONDS


def recheck(opened: float, step: int, now: float, chance: float) -> tuple[int, float]:
    """The ladder's next step after ``now`` at or behind ``step``, and its time.

    The first recheck is exact (S38: open for 60 s), later ones move by 20 % either way."""
    while True:
        last = len(LADDER) - 1
        after = LADDER[min(step, last)] + max(0, step - last) * REPEAT
        if opened + after > now or step > 1000:
            break
        step += 1
    if step == 0:
        return 0, opened + after
    return step, max(now + 1.0, opened + after * (1.0 + JITTER * (2.0 * chance - 1.0)))


def _count(state: Breaker, failed: bool, now: float) -> Breaker:
    slot = int(now // (WINDOW / 2))
    good, bad = state.good, state.bad
    if slot == state.slot + 1:
        good, bad = (0, good[0]), (0, bad[0])
    elif slot != state.slot:
        good, bad = (0, 0), (0, 0)
    if failed:
        bad = (bad[0] + 1, bad[1])
    else:
        good = (good[0] + 1, good[1])
    streak = state.streak + 1 if failed else 0
    return msgspec.structs.replace(state, slot=slot, good=good, bad=bad, streak=streak)


def _share_exceeded(state: Breaker) -> bool:
    good, bad = sum(state.good), sum(state.bad)
    return good + bad >= SAMPLE and bad > SHARE * (good + bad)


def _ramp_failed(state: Breaker) -> bool:
    good, bad = sum(state.good), sum(state.bad)
    return bad > RAMP_ERRORS * (good + bad)


def _open(state: Breaker, now: float, opened: float, step: int, chance: float) -> Breaker:
    step, until = recheck(opened, step, now, chance)
    return msgspec.structs.replace(
        state,
        phase=Phase.OPEN,
        opened=opened,
        step=step,
        until=until,
        streak=0,
        good=(0, 0),
        bad=(0, 0),
    )
