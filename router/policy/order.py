"""In which order the sources of a pool are asked: sticky by hash, or smooth weighted round robin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from router.policy.compiled import Candidate, View
from router.policy.hashing import digest, distances

_LAST = 1e12  # farther than any distance


def sticky(
    candidates: Sequence[Candidate],
    nodes: Sequence[tuple[int, float]],
    key: str,
    regions: Mapping[str, int],
) -> Iterator[Candidate]:
    """Nearest first by weighted rendezvous hash of ``key``; ``regions`` (region -> weight, empty: no
    preference) multiply, and sources of a region without weight come last.

    The order behind the nearest is worked out only for who asks further.
    """
    away = distances(digest(key), nodes)
    if regions:
        for i, c in enumerate(candidates):
            share = regions.get(c.region, 0)
            away[i] = away[i] / share if share else away[i] + _LAST
    first = away.index(min(away))
    yield candidates[first]
    rest = sorted((d, i) for i, d in enumerate(away) if i != first)
    for _, i in rest:
        yield candidates[i]


def by_hash(
    view: View, recipient: str, domain: str, size: int | None, regions: Mapping[str, int]
) -> Iterator[Candidate]:
    """S16 for a high-volume domain: it keeps a sub-pool, the ``size`` sources nearest to it, and each
    recipient keeps a source of those. The other sources follow, for when none of them can."""
    if size is None or size >= len(view.candidates):
        yield from sticky(view.candidates, view.nodes, recipient, regions)
        return
    by_domain = list(sticky(view.candidates, view.nodes, "@" + domain, {}))
    for part in (by_domain[:size], by_domain[size:]):
        yield from sticky(part, [c.node for c in part], recipient, regions)


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
