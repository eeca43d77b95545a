"""The arithmetic of throttles: how deep a token bucket is and how fast it fills.

Exact by construction: tokens are whole, so a half-open window of ``W`` seconds sees at most
``depth - 1 + ceil(rate * W)`` of them. With ``rate = (count - (depth - 1)) / (per + hold)`` that is
``count`` for every window of ``per`` seconds, even when a token is used up to ``hold`` seconds after
it was taken. ``take.lua`` gets depth and rate from here and only does ``tokens + elapsed * rate``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from mailweir.contracts.policy import Throttle

DEPTH_SHARE = 0.008
"""Depth over one, as a share of the limit: costs throughput, buys bursts."""

GRANT_SHARE = 0.05
"""A grant takes at most this share of a minute's limit."""

HOLD_SHARE = 1 / 50
"""Time a token may wait for its use, as a share of the period..."""

HOLD_MAX = 1.2
"""... and at most so many seconds; an unused grant is given back after it. It costs throughput."""

SOON = 0.8
"""Tokens that will be there within so many seconds are promised to mails that wait for them: a bucket
this shallow runs over when nobody asks for half a second. A promise is kept within ``HOLD_MAX``."""

AHEAD = 10.0
"""Askers get places at most so many seconds ahead of the first free token (S31)."""


class Shape(NamedTuple):
    """A token bucket: ``depth`` whole tokens, ``rate`` tokens a second."""

    depth: float
    rate: float


def hold(limit: Throttle) -> float:
    """Seconds a taken token of this limit may wait for its use."""
    return min(HOLD_MAX, limit.per * HOLD_SHARE)


def shape(limit: Throttle) -> Shape:
    """The token bucket that never lets more than ``limit.count`` through in any ``limit.per``."""
    if limit.count < 1 or limit.per <= 0:
        raise ValueError(f"a throttle needs a positive count and period, not {limit}")
    per_minute = limit.count * 60.0 / limit.per
    extra = math.floor(min(DEPTH_SHARE * limit.count, GRANT_SHARE * per_minute))
    return Shape(1.0 + extra, (limit.count - extra) / (limit.per + hold(limit)))


class Bucket(NamedTuple):
    """State of a token bucket."""

    tokens: float
    updated: float


def refill(bucket: Bucket, form: Shape, now: float) -> Bucket:
    """The bucket at ``now``; a clock that steps back fills nothing."""
    elapsed = max(0.0, now - bucket.updated)
    return Bucket(min(form.depth, bucket.tokens + elapsed * form.rate), max(now, bucket.updated))


def whole(tokens: float) -> int:
    """Whole tokens; a millionth of one is rounding, not a debt."""
    return math.floor(tokens + 1e-6)


def available_at(bucket: Bucket, form: Shape, now: float) -> float:
    """When the next whole token is there."""
    missing = 1.0 - bucket.tokens
    return now if missing <= 1e-6 else now + missing / form.rate


def places(first: float, step: float, count: int, cap: float) -> list[float]:
    """A place in time for each of ``count`` askers: one token apart, none behind ``cap``."""
    return [min(first + i * step, cap) for i in range(count)]
