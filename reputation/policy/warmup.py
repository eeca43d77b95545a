"""Warmup of a source at a provider (S53, deliverability 3): earned days only. Pure.

A day is a policy day (UTC). It is earned when at least half its cap was used and it was healthy; then
the cap grows by ``growth``, at most by ``max_step``, and by at most 10 % above 50,000. Over a threshold
the cap is halved, at most once in 24 h, and the day does not count. An idle week decays a step a day;
30 idle days begin anew. Only real jobs count; nothing is sent to warm a source.
"""

from __future__ import annotations

import math

import msgspec

from mailweir.contracts.policy import Warmup

DAY = 86400.0
USED_SHARE = 0.5
HOURLY = 1.5 / 24.0  # of the day's cap: never the whole day in its first hour
SLOW_ABOVE = 50_000
SLOW_GROWTH = 0.10
IDLE_DECAY_DAYS = 7
IDLE_COLD_DAYS = 30
MIN_GROWTH, MAX_GROWTH = 0.10, 0.30


class Plan(msgspec.Struct, frozen=True):
    """The curve of one provider: jobs on day one, growth a day, largest step, cap above which it is warm."""

    start: float = 50
    growth: float = 0.2
    max_step: float = 5000
    target: float = 20000


class BadPlan(ValueError):
    """A number of a plan is outside what is allowed; the text names it."""


def plan_for(policy: Warmup, provider: str) -> Plan:
    """The plan of a provider: the policy's numbers, its own ones for this provider on top."""
    own = policy.by_provider.get(provider, {})
    return checked(
        Plan(
            start=own.get("start", policy.start),
            growth=own.get("growth", policy.growth),
            max_step=own.get("max_step", policy.max_step),
            target=own.get("target", policy.target),
        )
    )


def checked(plan: Plan) -> Plan:
    """The plan, or :class:`BadPlan` naming what is wrong with it."""
    if not 1 <= plan.start <= 100_000:
        raise BadPlan(f"start: {plan.start:g} is not between 1 and 100,000 jobs")
    if not MIN_GROWTH <= plan.growth <= MAX_GROWTH:
        raise BadPlan(f"growth: {plan.growth:g} a day is not between 0.10 and 0.30 (0.20 is +20 %)")
    if plan.max_step < 1:
        raise BadPlan("max_step: at least 1 job a day")
    return plan


def grown(plan: Plan, cap: float) -> float:
    """The cap after an earned day."""
    growth = plan.growth if cap < SLOW_ABOVE else min(plan.growth, SLOW_GROWTH)
    return min(cap * (1.0 + growth), cap + plan.max_step)


def shrunk(plan: Plan, cap: float) -> float:
    """One step back, never below the start."""
    return max(float(plan.start), cap / (1.0 + plan.growth))


def curve(plan: Plan, days: int) -> list[int]:
    """The cap of each day if every day is earned; day 1 first."""
    caps, cap = [], float(plan.start)
    for _ in range(days):
        caps.append(math.floor(cap))
        cap = grown(plan, cap)
    return caps


class Warming(msgspec.Struct, frozen=True):
    """Where a source stands at a provider."""

    cap: float
    day: int  # policy day: floor(now / DAY)
    used: int = 0  # jobs sent on that day
    step: int = 1  # earned days, the first one included
    last_used: int = 0  # last day with a job
    halved_at: float | None = None
    held: bool = False  # something was wrong on this day: it does not count
    reason: str = ""


class Health(msgspec.Struct, frozen=True):
    """What the day's evidence says: tail probabilities of a breach, and the share deferred."""

    breach: float = 0.0  # the larger of P(bounce > 2 %), P(complaint > 0.1 %)
    deferred: float = 0.0
    blocks: int = 0  # replies of the last hour that name our reputation
    what: str = ""  # the threshold concerned, in words


HOLD_BREACH, HALVE_BREACH = 0.80, 0.95
HOLD_DEFERRED, HALVE_DEFERRED = 0.10, 0.25
HALVE_BLOCKS = 2


def begin(plan: Plan, now: float) -> Warming:
    """Day one."""
    day = int(now // DAY)
    return Warming(cap=float(plan.start), day=day, last_used=day)


def look(w: Warming, plan: Plan, health: Health, now: float) -> Warming:
    """Bring the warmup to ``now``: mark or halve by health, close the day when it is over."""
    w = _close_days(w, plan, now)
    if (
        health.breach >= HALVE_BREACH
        or health.deferred > HALVE_DEFERRED
        or health.blocks >= HALVE_BLOCKS
    ):
        reason = f"paused: {health.what}"
        if w.halved_at is not None and now - w.halved_at < DAY:
            return msgspec.structs.replace(w, held=True, reason=reason)
        cap = max(min(float(plan.start), w.cap), w.cap * 0.5)
        return msgspec.structs.replace(
            w, cap=cap, held=True, halved_at=now, reason=f"halved: {health.what}"
        )
    if health.breach >= HOLD_BREACH or health.deferred > HOLD_DEFERRED:
        return msgspec.structs.replace(w, held=True, reason=f"held: {health.what}")
    return w


def used(w: Warming, jobs: int, now: float, plan: Plan) -> Warming:
    """Count jobs sent now."""
    w = _close_days(w, plan, now)
    return msgspec.structs.replace(w, used=w.used + jobs, last_used=w.day)


def restart(w: Warming, plan: Plan, now: float, reason: str) -> Warming:
    """Back to day one: blocklisted, or cold again."""
    return msgspec.structs.replace(
        begin(plan, now), held=True, halved_at=now, reason=reason, last_used=w.last_used
    )


def caps(w: Warming) -> tuple[int, int]:
    """Jobs allowed on this day and in one hour of it."""
    day = max(1, math.floor(w.cap))
    return day, min(day, max(1, math.ceil(day * HOURLY)))


def idle_days(w: Warming, now: float) -> int:
    """Days since the last job."""
    return int(now // DAY) - w.last_used


def _close_days(w: Warming, plan: Plan, now: float) -> Warming:
    today = int(now // DAY)
    while w.day < today:
        earned = not w.held and w.used >= USED_SHARE * math.floor(w.cap)
        idle = w.day - w.last_used
        cap, step, reason = w.cap, w.step, w.reason
        if idle >= IDLE_COLD_DAYS:
            cap, step, reason = float(plan.start), 1, "cold again: 30 idle days"
            w = msgspec.structs.replace(w, day=today - 1)  # the other idle days change nothing
        elif earned:
            cap, step, reason = grown(plan, w.cap), w.step + 1, ""
        elif idle >= IDLE_DECAY_DAYS:
            cap, reason = shrunk(plan, w.cap), f"{idle} idle days"
        elif not w.held:
            reason = f"yesterday used {w.used} of {math.floor(w.cap)}: not earned"
        w = msgspec.structs.replace(
            w, cap=cap, step=step, day=w.day + 1, used=0, held=False, reason=reason
        )
    return w
