"""Which bucket yields to which under pressure (S22): transactional, then marketing, then bulk.

Two things can be short. Workers: where one fleet serves both and the better bucket's queue is full, the
lesser one is dispatched in proportion to it, a fifth of what goes. Paths: where both may use the same
sources, the better bucket's due jobs leave the lesser one a fifth of a lane's room. Never nothing, so that
nobody starves; and nothing is held back from a fleet or a source of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from mailweir.contracts.job import Bucket
from router.policy.fairness import STEP_SHARE

ORDER = (Bucket.TRANSACTIONAL, Bucket.MARKETING, Bucket.BULK)
LESS = (1 - STEP_SHARE) / STEP_SHARE
"""Jobs of a lesser bucket for each of a better one that waits."""
FULL = 0.1
"""A queue with less than this share of its window free is full."""
FEWEST = 10
"""Jobs a yielding bucket saves up before it dispatches them: chunks of one job cost most."""


def better(bucket: Bucket) -> tuple[Bucket, ...]:
    """The buckets that go before this one."""
    return ORDER[: ORDER.index(bucket)]


def together(fleets: Iterable[frozenset[str]], one: str, other: str) -> bool:
    """Whether some live worker serves both queues; ``fleets``: what each serves."""
    return any(one in fleet and other in fleet for fleet in fleets)


class Yielding:
    """What one bucket may still dispatch while a better one waits for the same workers."""

    def __init__(self, floor: float) -> None:
        """``floor``: jobs per real second it may always dispatch."""
        self._floor = floor
        self._credit = 0.0
        self._looked: float | None = None

    def room(self, total: int, ahead: int | None, now: float) -> int:
        """Of ``total``, after ``ahead`` jobs of better buckets went in this turn (None: none of them
        waits); ``now``: real seconds."""
        if ahead is None:
            self._looked = None
            return total
        if self._looked is None:
            self._looked, self._credit = now, 0.0
        self._credit += ahead * LESS + (now - self._looked) * self._floor
        self._credit = min(self._credit, float(max(total, FEWEST)))
        self._looked = now
        return min(total, int(self._credit)) if self._credit >= FEWEST else 0

    def gone(self, count: int) -> None:
        """So many were dispatched."""
        self._credit = max(0.0, self._credit - count)
