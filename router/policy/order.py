"""In which order the sources of a pool are asked: sticky by hash, or smooth weighted round robin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.policy.compiled import Candidate, View
from router.policy.hashing import digest64, distance


def sticky(
    candidates: Sequence[Candidate], key: str, regions: Mapping[str, int]
) -> list[Candidate]:
    """Nearest first by weighted rendezvous hash of ``key``; ``regions`` (region -> weight, empty: no
    preference) multiply, and sources of a region without weight come last."""
    if len(candidates) == 1:
        return list(candidates)
    hashed = digest64(key)
    if not regions:
        ranked = [(distance(hashed, c.seed, c.weight), i) for i, c in enumerate(candidates)]
    else:
        ranked = []
        for i, c in enumerate(candidates):
            share = regions.get(c.region, 0)
            away = distance(hashed, c.seed, c.weight * (share or 1) / 100)
            ranked.append((away if share else away + 1e12, i))
    ranked.sort()
    return [candidates[i] for _, i in ranked]


def sub_pool(candidates: Sequence[Candidate], domain: str, size: int) -> Sequence[Candidate]:
    """The sources a high-volume domain keeps to: the ``size`` nearest to the domain, then the others
    (asked only when none of the sub-pool can take the job)."""
    return sticky(candidates, "@" + domain, {})[:size]


def round_robin(
    view: View, credits: Mapping[str, float], regions: Mapping[str, int]
) -> tuple[list[Candidate], dict[str, float]]:
    """Smooth weighted round robin: most credit first, and the credits after everybody's turn."""
    grown = {c.name: credits.get(c.name, 0.0) + c.weight for c in view.candidates}
    if regions:
        ranked = sorted(
            view.candidates,
            key=lambda c: (
                not regions.get(c.region),
                -grown[c.name] * (regions.get(c.region) or 1),
            ),
        )
    else:
        ranked = sorted(view.candidates, key=lambda c: -grown[c.name])
    return ranked, grown
