"""What workers reach (S34): a source out of its queue's reach takes no job, and says so."""

from __future__ import annotations

import msgspec
import pytest

from mailweir.contracts.heartbeat import GONE, Heartbeat, read_beat
from mailweir.contracts.policy import Action as Do
from mailweir.contracts.policy import Member, Policy, Pool, Rule, Share, Source
from mailweir.contracts.route import Held, Routed
from mailweir.contracts.snapshot import PathState
from router.policy.compiled import CompiledPolicy
from router.policy.decide import route
from router.policy.eligibility import UNREACHED
from router.policy.explain import explain
from router.policy.reach import CutOff, cut_off, unreached
from router.policy.record import record
from router.policy.replay import replay
from tests.unit.router.build import FRESH, NOW, context, job


def policy(**more: object) -> Policy:
    own = Source("own", ip="192.0.2.1", buckets=("bulk",))
    other = Source("other", ip="192.0.2.2", buckets=("bulk",))
    return Policy(
        sources={"own": own, "other": other},
        pools={
            "a": Pool("a", (Member("own"),), failover=("b",)),
            "b": Pool("b", (Member("other"),)),
        },
        rules=(Rule(1, "all", action=Do(pools=(Share("a", 100),))),),
        **more,  # type: ignore[arg-type]  # the struct's own keywords
    )


def beat(*unreachable: str, queues: tuple[str, ...] = ("bulk",), **more: object) -> Heartbeat:
    return Heartbeat(at=NOW, queues=queues, unreachable=unreachable, **more)  # type: ignore[arg-type]  # likewise


def test_one_worker_that_reaches_it_is_enough() -> None:
    assert unreached([beat("own", "other"), beat("other")], NOW) == {"bulk": {"other"}}
    assert unreached([beat("own"), beat("other")], NOW) == {}


@pytest.mark.parametrize(
    "beats",
    [[], [beat("own", stopping=True)], [beat("own", queues=("marketing",))]],
    ids=["nobody", "only one that stops", "another queue's"],
)
def test_a_queue_without_a_live_worker_refuses_nothing(beats: list[Heartbeat]) -> None:
    out = unreached(beats, NOW)
    got = route(job(bucket="bulk"), context(policy(), unreached=out), FRESH)[0]
    assert isinstance(got, Routed)
    assert got.source == "own"


def test_a_silent_worker_counts_no_more() -> None:
    assert unreached([beat("own")], NOW + GONE - 0.1) == {"bulk": {"own"}}
    assert unreached([beat("own")], NOW + GONE) == {}


def test_a_worker_that_knows_an_older_policy_says_nothing_of_a_new_source() -> None:
    assert "own" not in unreached([beat("gone")], NOW).get("bulk", ())


def test_the_job_takes_the_next_pool_or_is_held_with_the_reason_and_a_time() -> None:
    c = context(policy(), unreached=unreached([beat("own")], NOW))
    got = route(job(bucket="bulk"), c, FRESH)[0]
    assert isinstance(got, Routed)
    assert (got.pool, got.source) == ("b", "other")
    assert [(r.source, r.why) for r in got.rejected] == [("own", UNREACHED)]
    none = context(policy(), unreached=unreached([beat("own", "other")], NOW))
    held = route(job(bucket="bulk"), none, FRESH)[0]
    assert isinstance(held, Held)
    assert UNREACHED in held.reason
    assert NOW < held.until <= NOW + 30
    answer = explain(job(bucket="bulk"), none)
    assert answer["outcome"] == "held"
    assert {c["source"]: c["rejected_because"] for c in answer["candidates"]} == {
        "own": UNREACHED,
        "other": UNREACHED,
    }
    body = record(held, none, job(bucket="bulk"))
    assert replay(body, job(bucket="bulk"), none.policy, none.snapshot).same


def test_the_fleet_of_the_throttled_queue_is_asked_for_a_weak_path() -> None:
    out = unreached([beat("own", queues=("bulk.throttled",))], NOW)
    strong = route(job(bucket="bulk"), context(policy(), unreached=out), FRESH)[0]
    assert isinstance(strong, Routed)
    assert strong.source == "own"
    weak = {"own|gmail|bulk": PathState(score=0.5)}
    other = route(job(bucket="bulk"), context(policy(), weak, unreached=out), FRESH)[0]
    assert isinstance(other, Routed)
    assert other.source == "other"


def test_a_greylisted_job_stays_for_an_hour_not_for_ever() -> None:
    c = context(policy(), unreached=unreached([beat("own")], NOW))
    young = route(job(bucket="bulk", stay_with="own"), c, FRESH)[0]
    assert isinstance(young, Held)
    old = route(job(bucket="bulk", stay_with="own", accepted_at=NOW - 3601), c, FRESH)[0]
    assert isinstance(old, Routed)
    assert old.source == "other"
    uncertain = job(bucket="bulk", stay_with="own", state="uncertain", accepted_at=NOW - 3601)
    assert isinstance(route(uncertain, c, FRESH)[0], Held)  # moving it might mail twice


def test_the_alarm_names_queue_and_source_where_jobs_would_go() -> None:
    everywhere = {q: frozenset({"own"}) for q in ("bulk", "bulk.throttled", "marketing", "bulk@us")}
    assert cut_off(CompiledPolicy(policy()), everywhere) == [
        CutOff("bulk", "own"),
        CutOff("bulk.throttled", "own"),
    ]
    eu = policy(regions=("eu", "us"))  # a source without a region is the first one's
    assert cut_off(CompiledPolicy(eu), everywhere) == []
    assert cut_off(CompiledPolicy(eu), {"bulk@eu": frozenset({"own"})}) == [
        CutOff("bulk@eu", "own")
    ]


def test_a_beat_of_another_release_or_none_at_all_is_read_or_skipped() -> None:
    beat = Heartbeat(NOW, queues=("bulk",))
    body = msgspec.json.encode(beat)
    assert read_beat(body) == beat
    newer = msgspec.json.encode({**msgspec.to_builtins(beat), "new": [1]})
    assert read_beat(newer) == beat
    for garbage in (b"", b"\xff", b"[]", b'{"queues": []}', b'{"at": "yesterday"}'):
        assert read_beat(garbage) is None
