"""The book of connection leases in memory, over a clock moved by hand: what the script must agree with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from workers.connections import Claim, Held, Place


class MemoryLeases:
    """See :class:`workers.connections.LeaseBook`."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._ends: dict[Place, dict[str, list[float]]] = {}
        self._wanting: dict[Place, dict[str, float]] = {}

    async def claim(self, worker: str, claims: Sequence[Claim], seconds: float) -> list[Held]:
        return [self._claim(worker, claim, seconds) for claim in claims]

    def _claim(self, worker: str, claim: Claim, seconds: float) -> Held:
        now, place = self._now(), (claim.source, claim.site)
        ends = self._ends.setdefault(place, {})
        for name in list(ends):
            ends[name] = [end for end in ends[name] if end > now]
        wanting = self._wanting.setdefault(place, {})
        for name in [n for n, end in wanting.items() if end <= now]:
            del wanting[name]
        others = sum(len(some) for name, some in ends.items() if name != worker)
        held = max(0, min(claim.want, claim.cap - others))
        ends[worker] = [now + seconds] * held
        wanting.pop(worker, None)
        others_wanting = len(wanting)
        if held < min(claim.want, claim.part):
            wanting[worker] = now + seconds / 2
        return Held(held, others_wanting)
