"""A record that was altered, or another policy, does not expand to what is recorded."""

from __future__ import annotations

import msgspec
import pytest

from mailweir.contracts.policy import Action, Match, Member, Policy, Pool, Rule, Share, Source
from mailweir.contracts.snapshot import FastPath
from router.policy.compiled import CompiledPolicy
from router.policy.context import RecipientRoom
from router.policy.decide import route, route_many
from router.policy.record import record
from router.policy.replay import replay
from tests.unit.router.build import FRESH, NOW, context, job

POLICY = Policy(
    sources={n: Source(n, buckets=("bulk",)) for n in ("a1", "a2", "b1")},
    pools={
        "a": Pool("a", (Member("a1"), Member("a2")), sticky=False, failover=("b",)),
        "b": Pool("b", (Member("b1"),)),
    },
    rules=(
        Rule(1, "stop", Match(tag=("stop",)), Action(refuse="not today")),
        Rule(2, "split", Match(), Action(pools=(Share("a", 50), Share("b", 50)))),
    ),
)


def decided(j, **more):
    c = context(POLICY, **more)
    d, _ = route(j, c, FRESH)
    return c, msgspec.json.decode(msgspec.json.encode(record(d, c, j)))


def again(body, j, c, policy=POLICY):
    return replay(body, j, CompiledPolicy(policy), c.snapshot)


@pytest.mark.parametrize("field", ["pool", "source", "queue", "rule", "precedence"])
def test_an_altered_record_does_not_expand_to_itself(field) -> None:
    j = job(bucket="bulk")
    c, body = decided(j)
    assert again(body, j, c).same
    assert not again({**body, field: "else"}, j, c).same


def test_another_policy_is_noticed() -> None:
    j = job(bucket="bulk")
    c, body = decided(j)
    other = msgspec.structs.replace(POLICY, rules=POLICY.rules[:1])
    assert not again(body, j, c, other).same


def test_what_was_true_for_an_instant_is_told_by_the_losers() -> None:
    j = job(bucket="bulk")
    down = {f"{n}|gmail": FastPath(breaker="open", open_until=NOW + 50) for n in ("a1", "a2")}
    down["b1|gmail"] = FastPath()
    c, body = decided(j, fast_paths=down)
    done = again(body, j, c)
    assert (body["source"], done.same) == ("b1", True)
    why = {k["source"]: k["rejected_because"] for k in done.explanation["candidates"]}
    assert why["a1"] == why["a2"] == "breaker open"
    assert why["b1"] is None


def test_every_arm_and_turn_comes_out_as_it_was() -> None:
    jobs = [job(id=i, bucket="bulk", recipient=f"r{i}@gmail.com") for i in range(40)]
    c = context(POLICY)
    decisions, _ = route_many(jobs, c, FRESH)
    assert {(d.pool, d.source) for d in decisions} == {("a", "a1"), ("a", "a2"), ("b", "b1")}
    for j, d in zip(jobs, decisions, strict=True):
        assert again(record(d, c, j), j, c).same


def test_refusals_and_limits_come_out_too() -> None:
    for j, more in (
        (job(bucket="bulk", tags=("stop",)), {}),
        (job(bucket="bulk"), {"suppressed": {1: "complaint"}}),
        (job(bucket="bulk"), {"recipients": {1: RecipientRoom(NOW + 600, 3)}}),
        (job(bucket="bulk"), {"recipients": {1: RecipientRoom(NOW + 600, 20)}}),
        (job(bucket="bulk", expires_at=NOW - 1), {}),
    ):
        c, body = decided(j, **more)
        assert body["outcome"] != "routed"
        assert again(body, j, c).same, body
