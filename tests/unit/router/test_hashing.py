"""Rendezvous hashing is even, and what a leaving node held spreads over all others."""

from __future__ import annotations

from collections import Counter

from router.policy.hashing import digest, distances, seed_of


def homes(names: list[str], keys: int) -> list[str]:
    nodes = [(seed_of(name), 1.0) for name in names]
    out = []
    for i in range(keys):
        away = distances(digest(f"user{i}@example.com"), nodes)
        out.append(names[away.index(min(away))])
    return out


def test_twenty_nodes_share_evenly_and_a_leaver_is_spread_evenly():
    names = [f"source-{i}" for i in range(20)]
    before = homes(names, 40_000)
    for count in Counter(before).values():
        assert abs(count - 2000) < 200  # four standard deviations are 175
    after = homes(names[1:], 40_000)
    moved = Counter(new for old, new in zip(before, after, strict=True) if old == names[0])
    assert len(moved) == 19
    assert max(moved.values()) < 2 * min(moved.values())
    assert all(old == new for old, new in zip(before, after, strict=True) if old != names[0])
