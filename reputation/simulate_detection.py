"""How often the detectors cry wolf, and how soon they see a wolf: ``python -m reputation.simulate_detection``.

Each figure comes from many independent paths with a fixed seed; docs/reputation.md quotes the output.
"""

from __future__ import annotations

import random
import statistics
import sys
from typing import NamedTuple

from mailweir.contracts.policy import Thresholds
from reputation.policy.counters import (
    BOUNCE_STEPS,
    COMPLAINT_STEPS,
    CUSUM_SLOW,
    CUSUM_STOP,
    SOFT_STEPS,
    Counters,
    count_attempt,
)
from reputation.policy.standing import Peers, fault
from reputation.policy.statistics import cusum


class Found(NamedTuple):
    """Attempts until the alarm: median, and how many paths alarmed of how many."""

    median: float | None
    alarmed: int
    paths: int


def run_length(
    rate: float, steps: tuple[float, float], limit: float, paths: int, longest: int, seed: int
) -> Found:
    """Attempts until a CUSUM with these steps passes ``limit``, hits coming at ``rate``."""
    chance = random.Random(seed)
    found = []
    for _ in range(paths):
        value = 0.0
        for n in range(1, longest + 1):
            value = cusum(value, chance.random() < rate, steps)
            if value > limit:
                found.append(n)
                break
    return Found(statistics.median(found) if found else None, len(found), paths)


def minutes_to_rule(
    rate: float, per_hour: int, peer_rate: float, hours: float, paths: int, seed: int
) -> Found:
    """Minutes until a rule of S52 fires for a path whose soft bounces jump to ``rate`` after an hour of
    0.3 %, its two siblings staying at ``peer_rate``; looked at once a minute, as in production."""
    thresholds = Thresholds()
    chance = random.Random(seed)
    found = []
    for _ in range(paths):
        counters, start = Counters(), 1_800_000_000.0
        peers = Peers(tries=per_hour, soft=round(per_hour * peer_rate))
        for minute in range(60 + int(hours * 60)):
            now = start + 60 * minute
            share = rate if minute >= 60 else 0.003
            for i in range(per_hour // 60 + (chance.random() < per_hour % 60 / 60)):
                at = now + i
                if chance.random() < share:
                    count_attempt(counters, at, 1, "deferred", "rate_limited", "source")
                else:
                    count_attempt(counters, at, 1, "sent", None, None)
            if fault(counters, peers, thresholds, now + 60, 0.0) and minute >= 60:
                found.append(minute - 59)
                break
    return Found(statistics.median(found) if found else None, len(found), paths)


def main() -> None:
    """Print both tables as Markdown."""
    out = sys.stdout.write
    out(
        "| CUSUM | limit | true rate | attempts until the alarm (median) | alarmed |\n|-|-|-|-|-|\n"
    )
    for name, steps, rates in (
        ("hard bounces 1 % -> 4 %", BOUNCE_STEPS, (0.003, 0.01, 0.04, 0.10)),
        ("soft bounces 5 % -> 20 %", SOFT_STEPS, (0.02, 0.05, 0.20, 0.50)),
        ("complaints 0.05 % -> 0.2 %", COMPLAINT_STEPS, (0.0002, 0.0005, 0.002, 0.005)),
    ):
        for limit in (CUSUM_SLOW, CUSUM_STOP):
            for rate in rates:
                f = run_length(rate, steps, limit, paths=60, longest=20_000, seed=1)
                median = "-" if f.median is None else f"{f.median:,.0f}"
                out(
                    f"| {name} | {limit:g} | {rate:.2%} | {median} | {f.alarmed} of {f.paths} within 20,000 |\n"
                )
    out(
        "\n| soft bounces | attempts an hour | minutes until S52 fires (median) | fired |\n|-|-|-|-|\n"
    )
    for rate, hours in (
        (0.003, 24.0),
        (0.01, 24.0),
        (0.03, 3.0),
        (0.05, 3.0),
        (0.10, 3.0),
        (0.20, 3.0),
    ):
        for per_hour in (120, 600, 2400):
            f = minutes_to_rule(rate, per_hour, 0.003, hours, paths=30, seed=2)
            median = "-" if f.median is None else f"{f.median:.0f}"
            out(
                f"| {rate:.1%} | {per_hour} | {median} | {f.alarmed} of {f.paths} in {hours:g} h |\n"
            )


if __name__ == "__main__":
    main()
