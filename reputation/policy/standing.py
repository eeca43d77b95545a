"""How a path stands, judged again and again: S52's ladder, S11's bands, S54's healing. Pure.

Rates are over the last hour; the soft-bounce rule looks at its last 30 minutes, in thirds, so that one
burst is no half hour. Small samples never trigger: 50 attempts, and the posterior must be 95 % sure.
"""

from __future__ import annotations

import msgspec

from mailweir.contracts.policy import Thresholds
from reputation.policy import counters, weights
from reputation.policy.counters import HOUR, N
from reputation.policy.score import Score
from reputation.policy.states import State, check_move
from reputation.policy.statistics import exceeds

SETTLE = (
    600.0  # seconds out of rotation before probation: replies still under way are the old evidence
)
CLEAN = 4 * HOUR
FULL = 24 * HOUR  # since probation began
PROBATION_HOUR = 10  # jobs an hour
EXTEND = 4 * HOUR  # recovering goes on so long when the rate is not below 1 %
RECOVERING_SHARE = 0.10
PROBATION_SHARE = 0.01
FULL_SOFT = 0.01
AGAIN = (600.0, HOUR, 4 * HOUR, 12 * HOUR)  # out of rotation the 1st, 2nd ... time in a row
BLOCK_SECONDS = 12 * HOUR  # a blocklisted source
THIRD = 600.0
THIRD_SHARE = 5 / 6  # of the soft rate that each third must reach: it lasted, it was no burst
MIN_SOFT = (
    5  # soft bounces in the half hour; fewer are chance at hundreds of paths looked at all day
)
JEFFREYS = (0.5, 0.5)


class Standing(msgspec.Struct, frozen=True):
    """The state of one path. Times are policy seconds."""

    state: State
    since: float
    until: float | None = None
    back: State = State.WARM  # where it belongs when it is well: warm or warming
    falls: int = 0  # suspensions since it was last well
    evidence_from: float = 0.0  # older evidence was acted upon already
    good_since: float | None = None  # score above the return mark since
    effective: float = 1.0  # weight * score**2, moves in bounded steps
    stepped_at: float = 0.0
    reason: str = ""
    tries: int = 0  # the path's totals when its probation began
    soft: int = 0


class Peers(msgspec.Struct, frozen=True):
    """The pool's other sources at this provider in the last 30 minutes; ``sick``: all own sources
    there show the same symptom, so it is the provider's, or that is not decided yet."""

    tries: int = 0
    soft: int = 0
    sick: bool = False


def new(state: State, now: float) -> Standing:
    """A path first seen."""
    back = State.WARMING if state in (State.COLD, State.WARMING) else State.WARM
    return Standing(state, now, back=back, stepped_at=now, effective=0.64)


def fault(
    c: counters.Counters, peers: Peers, t: Thresholds, now: float, since: float
) -> str | None:
    """The first rule of S52 that fires, in words with its numbers, or None.

    Evidence from before ``since`` was acted upon and is not judged twice."""
    hour = counters.recent(c, now, min(HOUR, now - since))
    first, good = hour[N.FIRST], hour[N.GOOD]
    if first >= t.min_attempts and good < t.delivery_rate * first:
        sure = exceeds(first - good, first, 1.0 - t.delivery_rate, JEFFREYS)
        if sure >= t.confidence:
            return f"delivery rate {good / first:.1%} of {first} below {t.delivery_rate:.0%}"
    if now - since < t.soft_seconds or peers.tries < t.min_attempts:
        return None
    # the open slot on top: the half hour must be full
    half = counters.recent(c, now, counters.SLOT + t.soft_seconds)
    tries, soft = half[N.TRIES], half[N.SOFT]
    if tries < t.min_attempts or soft < max(MIN_SOFT, t.soft_rate * tries):
        return None
    if peers.soft >= t.soft_peer_rate * peers.tries:
        return None
    sums = [counters.recent(c, now, counters.SLOT + t.soft_seconds * i / 3) for i in (1, 2, 3)]
    before = [0, 0]
    for row in sums:
        part_tries, part_soft = row[N.TRIES] - before[0], row[N.SOFT] - before[1]
        before = [row[N.TRIES], row[N.SOFT]]
        if part_soft < THIRD_SHARE * t.soft_rate * part_tries or part_tries == 0:
            return None
    if exceeds(soft, tries, t.soft_peer_rate, JEFFREYS) < t.confidence:
        return None
    share = peers.soft / peers.tries
    return f"soft bounces {soft / tries:.1%} of {tries} in 30 min, other sources {share:.1%}"


def judge(
    s: Standing, c: counters.Counters, score: Score, peers: Peers, t: Thresholds, now: float
) -> Standing:
    """The next standing. While the provider is sick nothing gets worse and nothing is promoted."""
    if s.state is State.PAUSED or peers.sick:
        return s
    if s.state is State.SUSPENDED:
        if s.until is not None and now >= s.until:
            s = move(s, State.PROBATION, now, "minimal volume", evidence_from=now)
            return msgspec.structs.replace(s, tries=c.tries, soft=c.soft)
        return s
    if s.state is State.PROBATION:
        return _probation(s, c, now)
    why = fault(c, peers, t, now, s.evidence_from) or _alarm(c, score, t, now)
    if why is not None:
        return suspend(s, now, why)
    if s.state is State.RECOVERING:
        return _recovering(s, c, now)
    return _bands(s, c, score, t, now)


def suspend(s: Standing, now: float, why: str, seconds: float | None = None) -> Standing:
    """Out of rotation; longer each time it falls again before it was well."""
    wait = seconds if seconds is not None else AGAIN[min(s.falls, len(AGAIN) - 1)]
    moved = move(s, State.SUSPENDED, now, why, evidence_from=now)
    return msgspec.structs.replace(moved, until=now + wait, falls=s.falls + 1, effective=0.0)


def share(s: Standing) -> float:
    """Factor of the state on the path's share of traffic."""
    return {
        State.SUSPENDED: 0.0,
        State.PAUSED: 0.0,
        State.PROBATION: PROBATION_SHARE,
        State.RECOVERING: RECOVERING_SHARE,
    }.get(s.state, 1.0)


def weigh(s: Standing, score: float, now: float, *, frozen: bool = False) -> Standing:
    """Move the effective weight by the steps that are due; ``frozen`` while a provider is sick."""
    target = share(s) * score * score
    if s.state in (State.PROBATION, State.RECOVERING):
        # the ladder names these shares: they hold from the moment the state does
        return msgspec.structs.replace(s, effective=target, stepped_at=now)
    if target <= 0.0:
        return (
            s if s.effective == 0.0 else msgspec.structs.replace(s, effective=0.0, stepped_at=now)
        )
    steps = int((now - s.stepped_at) // weights.STEP_SECONDS)
    if frozen or steps <= 0:
        return s
    value = weights.towards(s.effective, target, steps)
    stepped = s.stepped_at + steps * weights.STEP_SECONDS
    return msgspec.structs.replace(s, effective=value, stepped_at=stepped)


def _probation(s: Standing, c: counters.Counters, now: float) -> Standing:
    hour = counters.recent(c, now, min(HOUR, now - s.since))
    if hour[N.SOFT] >= 2 and hour[N.SOFT] > 0.1 * hour[N.TRIES]:
        return suspend(s, now, f"not clean on probation: {hour[N.SOFT]} of {hour[N.TRIES]} soft")
    if now - s.since >= CLEAN and c.last > s.since:
        return move(s, State.RECOVERING, now, "4 h clean", evidence_from=now, until=s.since + FULL)
    return s


def _recovering(s: Standing, c: counters.Counters, now: float) -> Standing:
    if s.until is None or now < s.until:
        return s
    tries, soft = c.tries - s.tries, c.soft - s.soft
    if soft >= FULL_SOFT * max(tries, 1):
        return msgspec.structs.replace(s, until=now + EXTEND, tries=c.tries, soft=c.soft)
    well = move(s, s.back, now, f"24 h, soft bounces {soft} of {tries}")
    return msgspec.structs.replace(well, falls=0)


def _alarm(c: counters.Counters, score: Score, t: Thresholds, now: float) -> str | None:
    if score.evidence < t.hold_below and score.confidence >= 0.5:
        return f"score {score.evidence:.2f} below {t.hold_below:g}"
    if c.cusum_soft > counters.CUSUM_STOP and _enough(c, t, now):
        return "soft bounces rose suddenly (CUSUM)"
    return None


def _enough(c: counters.Counters, t: Thresholds, now: float) -> bool:
    hour = counters.recent(c, now, HOUR)
    return hour[N.TRIES] + hour[N.HARD] >= t.min_attempts


def _bands(s: Standing, c: counters.Counters, score: Score, t: Thresholds, now: float) -> Standing:
    alarm = max(c.cusum_bounce, c.cusum_complaint, c.cusum_soft) > counters.CUSUM_SLOW
    # the start value of a new source is no evidence against it
    low = score.evidence < t.throttle_below and score.confidence >= 0.5
    if s.state is not State.SLOWED:
        if low or (alarm and _enough(c, t, now)):
            why = f"score {score.evidence:.2f}" if low else "a rate rose suddenly (CUSUM)"
            if s.state is State.COLD:
                s = move(s, State.WARMING, now, "first job")
            return move(s, State.SLOWED, now, why)
        if s.state is State.COLD and c.last > s.since:
            return move(s, State.WARMING, now, "first job")
        return s
    if score.evidence <= t.return_above or alarm:
        return s if s.good_since is None else msgspec.structs.replace(s, good_since=None)
    if s.good_since is None:
        return msgspec.structs.replace(s, good_since=now)
    if now - s.good_since < t.return_seconds:
        return s
    return msgspec.structs.replace(move(s, s.back, now, "score is back"), falls=0)


def move(
    s: Standing,
    state: State,
    now: float,
    reason: str,
    *,
    evidence_from: float | None = None,
    until: float | None = None,
) -> Standing:
    check_move(s.state, state)
    return msgspec.structs.replace(
        s,
        state=state,
        since=now,
        until=until,
        reason=reason,
        good_since=None,
        evidence_from=s.evidence_from if evidence_from is None else evidence_from,
    )
