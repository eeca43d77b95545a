"""Addresses that fail again and again without a definite word: suppressed for 30 days. Pure.

Mailbox full five times in a row over at least a week; three jobs in a row that expired, over at least
three days, so that no single outage of a provider is held against its users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

DAY = 86400.0
SUPPRESSED = 30 * DAY
FULL, FULL_SPAN = 5, 7 * DAY
EXPIRED, EXPIRED_SPAN = 3, 3 * DAY
LOOK_BACK = 200
"""Attempts of an address that are read."""


class Try(NamedTuple):
    """One attempt to reach an address."""

    at: float
    outcome: str
    category: str | None
    blame: str | None


class Ended(NamedTuple):
    """One job that ended. ``attempts``: how often it was tried."""

    at: float
    state: str
    attempts: int


def stays_full(tries: Sequence[Try]) -> bool:
    """Whether the newest answers of the recipient all say that the mailbox is full; newest first.

    What the remote, the network or our own source failed at says nothing about the mailbox."""
    run: list[float] = []
    for each in tries:
        if each.category == "mailbox_full":
            run.append(each.at)
        elif each.outcome in ("sent", "uncertain") or each.blame == "recipient":
            break
    return len(run) >= FULL and run[0] - run[-1] >= FULL_SPAN


def stays_silent(jobs: Sequence[Ended]) -> bool:
    """Whether the newest jobs that were tried all expired; newest first."""
    run = [job for job in jobs if job.attempts][:EXPIRED]
    if len(run) < EXPIRED or any(job.state != "expired" for job in run):
        return False
    return run[0].at - run[-1].at >= EXPIRED_SPAN
