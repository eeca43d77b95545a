"""Which campaigns are slowed: more than 5 % of what they send bounces (S32). Pure.

Outcomes are counted in windows of at least :data:`WINDOW` seconds and :data:`SAMPLE` outcomes. A
window that certainly has too many bounces (Wilson's lower bound, 95 % one-sided) halves the campaign's
rate, from the rate it had; one that only may have stays open and goes on counting; a clean one gives a
quarter back, until the rate it had when it was first slowed is reached and the limit goes. Between
the two thresholds the rate stays, so that it settles. ``workers/campaigns.lua`` is the twin.
"""

from __future__ import annotations

from math import sqrt

import msgspec

from mailweir.contracts.policy import Throttle

WINDOW = 60.0
"""Policy seconds a window lasts at least."""
SAMPLE = 100
"""Outcomes a window has at least: below, a few dead addresses would be a verdict."""
SLOW_ABOVE = 0.05
Z = 1.645
"""Normal quantile of 95 %, one-sided: six dead addresses among the first hundred are no verdict."""
RETURN_BELOW = 0.04
DOWN = 0.5
UP = 1.25
FLOOR = 0.1
"""Jobs a second a slowed campaign keeps: 6 a minute, enough to see that its list got better."""


class Campaign(msgspec.Struct, frozen=True):
    """State of one campaign of one tenant."""

    begun: float | None = None  # of the window, policy seconds
    sent: int = 0
    bounced: int = 0
    rate: float | None = None  # jobs a second while slowed
    base: float = 0.0  # rate it had when it was first slowed


def book(state: Campaign, sent: int, bounced: int, now: float) -> Campaign:
    """The state after so many sent and bounced jobs more."""
    begun = now if state.begun is None else state.begun
    sent, bounced = state.sent + sent, state.bounced + bounced
    total, seconds = sent + bounced, now - begun
    if total < SAMPLE or seconds < WINDOW:
        return Campaign(begun, sent, bounced, state.rate, state.base)
    share, rate, base = bounced / total, state.rate, state.base
    if share > SLOW_ABOVE:
        if lower_bound(bounced, total) <= SLOW_ABOVE:
            return Campaign(begun, sent, bounced, rate, base)
        if rate is None:
            rate = base = total / seconds
        rate = max(FLOOR, rate * DOWN)
    elif rate is not None and share < RETURN_BELOW:
        rate *= UP
        if rate >= base:
            rate, base = None, 0.0
    return Campaign(now, 0, 0, rate, base)


def lower_bound(hits: int, total: int) -> float:
    """Wilson's lower bound of a share, 95 % one-sided."""
    share, z2 = hits / total, Z * Z
    spread = Z * sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return (share + z2 / (2 * total) - spread) / (1 + z2 / total)


def limit(rate: float) -> Throttle:
    """A slowed campaign's rate as a throttle."""
    return Throttle(max(1, round(rate * 60.0)), 60.0)
