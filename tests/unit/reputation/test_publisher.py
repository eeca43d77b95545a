"""A snapshot never grows beyond 1 MiB, and what restrains stays in it."""

from __future__ import annotations

import msgspec
import pytest

from mailweir.contracts.snapshot import PathState, Snapshot
from reputation.publisher import MAX_BYTES, fitted


def size(snapshot: Snapshot) -> int:
    return len(msgspec.json.encode(snapshot))


@pytest.mark.parametrize("count", [10, 5000, 20_000])
def test_fits_and_keeps_every_restraint(count: int) -> None:
    paths = {
        f"s{i}|provider{i}.example|marketing": PathState(
            score=0.5 + (i % 50) / 100,
            state="suspended" if i % 20 == 0 else "warm",
            cap_day=100 if i % 20 == 1 else None,
            reasons=("one reason of sixty characters " * 2,) * 4,
        )
        for i in range(count)
    }
    full = Snapshot(1, 0.0, 1, paths)
    small = fitted(full)
    assert size(small) <= MAX_BYTES
    kept = {n for n, s in paths.items() if s.state != "warm" or s.cap_day is not None}
    assert kept <= small.paths.keys()
    for name in kept:
        assert small.paths[name].state == paths[name].state
        assert small.paths[name].cap_day == paths[name].cap_day
    if count == 10:
        assert small == full
