"""A slow provider never fills the window; a free one is not held back."""

from __future__ import annotations

from math import ceil

from mailweir.contracts.policy import Policy, Provider, Throttle
from mailweir.contracts.snapshot import FastPath, FastState, PathState, Snapshot
from router.lanes import LEAST, LaneShares
from router.policy.paces import FORGOTTEN, OVER, STEPS, Paces

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


def test_what_comes_back_holds_a_lane_to_what_goes() -> None:
    """A limit of 100 a slot that no policy tells: the pace finds it, and stays a little over it."""
    paces = Paces(20_000)
    back: dict[int, int] = {}
    gone: list[int] = []
    for slot in range(1, 40):
        paces.turn(slot, lambda of: {"~0a": back[of]})
        left = paces.left("~0a", 1.0)
        count = 4000 if left is None else left  # there is always more to send
        paces.gone({"~0a": count})
        gone.append(count)
        back[slot] = max(0, count - 100)
    assert gone[0] == 4000
    assert max(gone[8:]) <= 100 * OVER**2
    assert sum(gone[20:]) >= 100 * len(gone[20:]), "the limit is used"
    for slot in range(40, 60):  # it is lifted
        paces.turn(slot, lambda of: {"~0a": back[of]})
        left = paces.left("~0a", 1.0)
        paces.gone({"~0a": 4000 if left is None else left})
        back[slot] = 0
    assert paces.left("~0a", 0.0) is None
    assert paces.left("~0b", 0.0) is None, "another lane was never held"


def test_who_was_sent_back_far_ahead_does_not_come_as_a_herd() -> None:
    """Much less than the pace goes for the ten seconds until their places: it does not grow meanwhile."""
    paces = Paces(20_000)
    paces.turn(1, lambda of: {})
    paces.gone({"gmail": 5000})
    paces.turn(2, lambda of: {"gmail": 4000})
    assert paces.left("gmail", 1.0) == int(OVER * 1000)
    for slot in range(3, 9):
        paces.gone({"gmail": 400})
        paces.turn(slot, lambda of: {})
    assert paces.left("gmail", 1.0) == int(OVER * (1000 + 400) / 2)
    for slot in range(9, 2 + FORGOTTEN + 2):
        paces.turn(slot, lambda of: {})
    assert paces.left("gmail", 0.0) is None


def test_what_comes_back_late_does_not_slow_a_lane_that_was_not_used() -> None:
    paces = Paces(20_000)
    paces.turn(1, lambda of: {})
    paces.gone({"gmail": 5000})
    paces.turn(2, lambda of: {"gmail": 4000})
    paces.turn(3, lambda of: {"gmail": 0})
    held = paces.left("gmail", 1.0)
    for slot in range(4, 8):
        paces.turn(slot, lambda of: {"gmail": 30})
    assert paces.left("gmail", 1.0) == held


def test_a_pace_is_spent_in_parts_of_its_slot() -> None:
    paces = Paces(20_000)
    paces.turn(1, lambda of: {})
    paces.gone({"gmail": 1000})
    paces.turn(2, lambda of: {"gmail": 500})
    whole = int(OVER * 500)
    part = ceil(whole / STEPS)
    assert [paces.left("gmail", into) for into in (0.0, 1.1 / STEPS, 0.999)] == [
        part, ceil(2 * whole / STEPS), whole,
    ]  # fmt: skip
    paces.gone({"gmail": 30})
    assert paces.left("gmail", 0.0) == paces.left("gmail", 0.9 / STEPS) == part - 30
    shares = LaneShares(20_000)
    assert room(shares, "gmail") == 200
    shares.paces = paces
    assert room(shares, "gmail") == part - 30
