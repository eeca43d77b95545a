"""Whether one source may take one job now, and if not: why, and when to ask again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mailweir.contracts.policy import Policy, Thresholds
from mailweir.contracts.snapshot import FastPath
from router.policy.compiled import Candidate
from router.policy.context import Ramp

WINDOW_SECONDS = 10.0  # a path gets at most what it can send in this time, per look at Redis
MAX_WAIT = 2.0  # seconds a job may wait inside a worker (settings: worker.max_wait)
COLD = frozenset({"cold", "warming"})
BROKEN = "breaker open"
UNREACHED = "no live worker of its queue reaches this source"
REACH_WAIT = 10.0  # policy seconds; a worker that starts says within two real ones what it reaches
RAMP_STEP = 0.1  # S14: 10 % a minute
RAMP_FORGET = 300.0  # seconds without failover after which a ramp begins anew


class No(NamedTuple):
    """A reason, and the time it is likely to end (None: not known)."""

    why: str
    until: float | None = None


class Needs(NamedTuple):
    """What a job demands of its source."""

    bucket: str
    provider: str
    transactional: bool
    regions: frozenset[str] | None  # the only regions allowed (residency, region pin); None: any
    region_rule: str  # names the constraint behind ``regions``
    warm_only: bool
    risky: bool  # not for a recheck of a broken path
    now: float


class Look(NamedTuple):
    """What the batch knows of the world, beside the candidate."""

    thresholds: Thresholds
    fast: Mapping[str, FastPath]
    used: Mapping[str, int]
    ramps: Mapping[str, Ramp]
    paused: Mapping[str, float]
    policy: Policy


def refusal(c: Candidate, needs: Needs, look: Look, *, failover: bool) -> No | None:
    """None if the candidate may take the job. A score between ``hold_below`` and ``throttle_below``
    does not refuse here (queues and last resorts are the caller's)."""
    now = needs.now
    path = c.path
    if needs.regions is not None and c.region not in needs.regions:
        return No(f"{needs.region_rule}: region {c.region or 'unknown'} is not allowed")
    if look.paused:
        until = look.paused.get(f"source:{c.name}", 0.0)
        if until > now:
            return No("paused by an operator", until)
    if path.stopped(now):
        return No(path.state, path.until)
    if path.score < look.thresholds.hold_below:
        return No(f"score below {look.thresholds.hold_below:g}")
    if needs.warm_only and (
        path.state in COLD or not (c.source.source.warm or path.state == "warm")
    ):
        return No("the rule wants warm sources only")
    key = f"{c.name}|{needs.provider}"
    fast = look.fast.get(key)
    used = look.used.get(key, 0)
    capped = path.cap_day is not None or path.cap_hour is not None
    if capped and (no := _over_cap(c, fast, used, now)):
        return no
    if fast is not None and (no := _fast_refusal(fast, used, needs)):
        return no
    if failover and not needs.transactional:
        return _over_ramp(c, fast, look, key, needs)
    return None


def _over_cap(c: Candidate, fast: FastPath | None, used: int, now: float) -> No | None:
    """Warmup caps: what was used by the last look plus what this router has given since."""
    day, hour = (fast.used_day, fast.used_hour) if fast is not None else (0, 0)
    path = c.path
    if path.state == "probation":
        hour = 0  # its cap is the path's own, ``used_hour`` is all buckets': workers count it
    if path.cap_day is not None and day + used >= path.cap_day:
        return No(f"warmup cap of {path.cap_day} a day is used", now + 3600.0)
    if path.cap_hour is not None and hour + used >= path.cap_hour:
        return No(f"warmup cap of {path.cap_hour} an hour is used", now - now % 3600.0 + 3600.0)
    return None


def _fast_refusal(fast: FastPath, used: int, needs: Needs) -> No | None:
    """Breaker, next token, and the path's share of the window."""
    now = needs.now
    if fast.breaker == "open" and (fast.open_until is None or fast.open_until > now):
        return No(BROKEN, fast.open_until)
    if fast.breaker != "closed":  # a recheck: one real, low-risk job per look
        if needs.risky:
            return No("recheck of a broken path: not with high-risk mail", now + 60.0)
        recovering = fast.breaker == "half_open" and fast.rate is not None
        if used >= (max(1.0, fast.rate * WINDOW_SECONDS) if recovering and fast.rate else 1.0):
            return No("recheck of a broken path under way", now + 10.0)
        return None
    if fast.available_at > now + MAX_WAIT:
        return No("rate limit: no token soon", fast.available_at)
    if fast.rate is not None and used >= max(1.0, fast.rate * WINDOW_SECONDS):
        return No("its share of the window is full", now + 1.0)
    return None


def _over_ramp(
    c: Candidate, fast: FastPath | None, look: Look, key: str, needs: Needs
) -> No | None:
    """S14: a backup path takes 10 % of its rate in the first minute of a failover, then 10 % more each
    minute. Transactional jobs count, but do not wait for it: they go first."""
    ramp = look.ramps.get(key)
    now = needs.now
    if ramp is None or now - ramp.last > RAMP_FORGET:
        return None  # the first job of a failover begins the ramp
    minute = int((now - ramp.began) // 60.0)
    share = RAMP_STEP * (minute + 1)
    used = ramp.used if minute == ramp.minute else 0
    if share >= 1.0 or used < max(1.0, share * 60.0 * rate_of(c, fast, look, needs)):
        return None
    return No("failover ramp of 10 % a minute", ramp.began + (minute + 1) * 60.0)


def rate_of(c: Candidate, fast: FastPath | None, look: Look, needs: Needs) -> float:
    """Jobs per second a path can take: its live rate, else the relay's quota, else the provider's."""
    if fast is not None and fast.rate is not None:
        return fast.rate
    if c.source.source.quota is not None:
        return c.source.source.quota.rate
    provider = look.policy.providers.get(needs.provider)
    return provider.rate.rate if provider is not None else 1.0


def after(ramp: Ramp | None, now: float) -> Ramp:
    """The ramp after one more job given to a backup path."""
    if ramp is None or now - ramp.last > RAMP_FORGET:
        return Ramp(now, 0, 1, now)
    minute = int((now - ramp.began) // 60.0)
    return Ramp(ramp.began, minute, ramp.used + 1 if minute == ramp.minute else 1, now)
