"""A slow provider never fills the window; a free one is not held back."""

from __future__ import annotations

from mailweir.contracts.policy import Policy, Provider, Throttle
from mailweir.contracts.snapshot import FastPath, FastState, PathState, Snapshot
from router.lanes import LEAST, LaneShares

POLICY = Policy(providers={"gmail": Provider("gmail", rate=Throttle(600, 60))})
SNAPSHOT = Snapshot(1, 0.0, 1, {})
FAST = FastState(1, {})


def room(shares: LaneShares, lane: str, fast: FastState = FAST, waiting: int = 0) -> int:
    got = shares.room([lane], ["a", "b"], "bulk", POLICY, SNAPSHOT, fast, {lane: waiting})
    return got[lane]


def test_a_known_lane_gets_ten_seconds_of_its_sources_rates() -> None:
    assert room(LaneShares(20_000), "gmail") == 200  # 2 sources x 10/s x 10 s
    assert room(LaneShares(20_000), "gmail", waiting=150) == 50


def test_an_open_breaker_leaves_its_sources_share_out() -> None:
    fast = FastState(1, {"a|gmail": FastPath(breaker="open", open_until=99.0)})
    assert room(LaneShares(20_000), "gmail", fast) == 100


def test_a_warmup_cap_used_up_leaves_only_a_trial() -> None:
    cold = PathState(state="warming", cap_day=50, cap_hour=5)
    snapshot = Snapshot(1, 0.0, 1, {"a|gmail|bulk": cold, "b|gmail|bulk": cold})
    used = FastState(1, {f"{s}|gmail": FastPath(used_day=50) for s in "ab"})
    got = LaneShares(20_000).room(["gmail"], ["a", "b"], "bulk", POLICY, snapshot, used, {})
    assert got == {"gmail": LEAST}


def test_an_unknown_lane_learns_from_what_comes_back() -> None:
    shares = LaneShares(1000)
    assert room(shares, "~0a") == 1000
    shares.learn({"~0a": 300}, {"~0a": 290})
    assert room(shares, "~0a") == 300
    shares.learn({"~0a": 100}, {"~0a": 100})
    assert room(shares, "~0a") == 100
    for _ in range(5):
        shares.learn({"~0a": 100}, {})
    assert room(shares, "~0a") == 1000
