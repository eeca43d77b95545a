"""What stops a routed job before it begins."""

from __future__ import annotations

import pytest

from mailweir.contracts.snapshot import PathState, Snapshot
from workers.policy.stopped import stopped

NOW = 1000.0


def why(paths: dict[str, PathState], paused: dict[str, float]) -> str | None:
    snapshot = Snapshot(1, NOW, 1, paths, paused)
    return stopped(snapshot, "s", "news", "gmail", "bulk", "acme", NOW)


@pytest.mark.parametrize(
    ("state", "goes"),
    [
        (PathState(), True),
        (PathState(state="suspended"), False),
        (PathState(state="suspended", until=NOW + 1), False),
        (PathState(state="suspended", until=NOW), True),  # its time is over
        (PathState(state="paused", until=NOW + 1), False),
        (PathState(state="probation", weight=0.01, cap_hour=10), True),
        (PathState(state="recovering", weight=0.1), True),
    ],
)
def test_a_path(state: PathState, goes: bool) -> None:
    assert (why({"s|gmail|bulk": state}, {}) is None) is goes
    assert (why({"s|other|bulk": state}, {}) is None) is goes  # a provider that is not listed
    assert why({"s|gmail|marketing": state, "t|gmail|bulk": state}, {}) is None


@pytest.mark.parametrize(
    "what", ["source:s", "pool:news", "provider:gmail", "bucket:bulk", "tenant:acme"]
)
def test_an_operators_pause(what: str) -> None:
    assert why({}, {what: NOW + 1}) == f"{what} is paused"
    assert why({}, {what: NOW}) is None
    assert why({}, {what[:-1]: NOW + 1, f"{what}x": NOW + 1}) is None
