"""When a job may go to its recipient (S21): at most so many in any span, a few more held. Pure.

The twin of ``router/recipients.lua``; ``tests/contract/test_recipients.py`` holds them together.
"""

from __future__ import annotations

from collections.abc import Sequence

Entry = tuple[str, float]
"""A job, and the policy time its mail goes out."""

REFUSED = -1.0
"""In place of a wait: too many are held already."""


def reserve(
    entries: Sequence[Entry], job: str, now: float, limit: int, per: float, most_held: int
) -> tuple[float, list[Entry]]:
    """Policy seconds the job must wait (0: it may go), and the recipient's entries, the earliest first.

    At most ``limit`` entries lie in any span of ``per`` seconds. A job that asks again keeps its place;
    one whose time has come is booked at ``now``, so that what was held elsewhere counts when it really
    goes, and those behind it move as far as that demands."""
    kept = [entry for entry in entries if entry[1] > now - per]
    mine = next((at for name, at in kept if name == job), None)
    if mine is not None:
        place = max(mine, now)
        kept = [entry for entry in kept if entry[0] != job]
    elif len(kept) < limit:
        place = now
    elif sum(at > now for _, at in kept) >= most_held:
        return REFUSED, kept
    else:
        place = max(now, kept[len(kept) - limit][1] + per)
    kept.append((job, place))
    kept.sort(key=lambda entry: entry[1])
    for n in range(limit, len(kept)):
        name, at = kept[n]
        kept[n] = (name, max(at, kept[n - limit][1] + per))
    return place - now, kept
