"""How long what waits will take."""

from __future__ import annotations

import math

import pytest

from console.estimate import lane_rates, seconds
from mailweir.contracts.policy import Member, Policy, Pool, Provider, Source, Throttle
from mailweir.contracts.snapshot import FastPath, FastState, PathState, Snapshot

POLICY = Policy(
    sources={n: Source(n, buckets=("bulk",)) for n in ("a", "b")}
    | {"t": Source("t", buckets=("transactional",))},
    pools={"p": Pool("p", (Member("a"), Member("b"))), "q": Pool("q", (Member("t"),))},
    providers={"gmail": Provider("gmail", rate=Throttle(600, 60))},
)
WELL, CALM = Snapshot(1, 0.0, 1, {}), FastState(0, {})


def rates(snapshot: Snapshot = WELL, fast: FastState = CALM) -> dict[str, float]:
    return lane_rates(["gmail", "~07"], "bulk", POLICY, snapshot, fast)


def test_a_lanes_rate_is_what_the_sources_of_its_bucket_may_send() -> None:
    assert rates() == {"gmail": 20.0, "~07": math.inf}
    slow = FastState(1, {"a|gmail": FastPath(rate=1.0)})
    assert rates(fast=slow)["gmail"] == 11.0
    gone = Snapshot(1, 0.0, 1, {"a|gmail|bulk": PathState(state="suspended")})
    assert rates(gone)["gmail"] == 10.0


def test_the_slower_of_limits_and_present_rate_decides() -> None:
    assert seconds(100, 50.0, {"gmail": 100}, rates()) == 5.0
    assert seconds(100, 2.0, {"gmail": 100}, rates()) == 50.0
    assert seconds(1000, 100.0, {"gmail": 400, "~07": 600}, rates()) == 20.0
    assert seconds(0, 0.0, {}, {}) == 0.0


@pytest.mark.parametrize("rate", [0.0, 5.0])
def test_a_lane_without_any_path_has_no_time(rate: float) -> None:
    broken = FastState(1, {n: FastPath(breaker="open") for n in ("a|gmail", "b|gmail")})
    assert seconds(10, rate, {"gmail": 10}, rates(fast=broken)) is None


def test_before_anything_moved_limits_tell() -> None:
    assert seconds(100, 0.0, {"gmail": 100}, rates()) == 5.0
    assert seconds(100, 0.0, {"~07": 100}, rates()) is None
