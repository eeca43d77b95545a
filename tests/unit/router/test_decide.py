"""Decisions: what ends, holds and routes a job."""

from __future__ import annotations

import msgspec
import pytest

from mailweir.contracts.job import Wishes
from mailweir.contracts.policy import (
    Action,
    Affinity,
    BucketPolicy,
    Match,
    Member,
    Policy,
    Pool,
    Retry,
    Rule,
    Share,
    Source,
)
from mailweir.contracts.route import Held, Refused, Routed
from mailweir.contracts.snapshot import FastPath, PathState
from router.policy.context import RecipientRoom
from router.policy.decide import route, route_many
from router.policy.default import default_policy
from router.policy.record import record
from tests.unit.router.build import FRESH, NOW, context, job


def policy(**more: object) -> Policy:
    return msgspec.structs.replace(default_policy(), **more)


def decide(j, c, state=FRESH):
    return route(j, c, state)[0]


def test_each_bucket_goes_to_its_queue_and_source():
    c = context(policy())
    for bucket, sources in (
        ("transactional", {"tx-1"}),
        ("marketing", {"news-1", "news-2"}),
        ("bulk", {"news-1", "news-2"}),
    ):
        got = decide(job(bucket=bucket), c)
        assert isinstance(got, Routed)
        assert (got.queue, got.pool) == (bucket, bucket)
        assert got.source in sources
        assert got.precedence == "rule"


@pytest.mark.parametrize(
    ("score", "queue"),
    [(0.7, "marketing"), (0.69, "marketing.throttled"), (0.4, "marketing.throttled")],
)
def test_score_chooses_the_throttled_queue(score, queue):
    paths = {f"news-{i}|gmail|marketing": PathState(score=score) for i in (1, 2)}
    got = decide(job(bucket="marketing"), context(policy(), paths))
    assert isinstance(got, Routed)
    assert got.queue == queue


def test_below_the_floor_it_is_held_with_time_and_reason():
    paths = {f"news-{i}|gmail|marketing": PathState(score=0.39) for i in (1, 2)}
    got = decide(job(bucket="marketing"), context(policy(), paths))
    assert isinstance(got, Held)
    assert got.until > NOW
    assert "score below 0.4" in got.reason


def test_transactional_takes_the_next_source_and_a_weak_one_only_when_nothing_is_left():
    two = policy(
        sources={**policy().sources, "tx-2": Source("tx-2", buckets=("transactional",))},
        pools={
            **policy().pools,
            "transactional": Pool("transactional", (Member("tx-1"), Member("tx-2"))),
        },
    )
    weak = {"tx-1|gmail|transactional": PathState(score=0.5)}
    for i in range(20):
        got = decide(job(id=i, recipient=f"r{i}@gmail.com"), context(two, weak))
        assert isinstance(got, Routed)
        assert (got.source, got.queue) == ("tx-2", "transactional")
    both = {**weak, "tx-2|gmail|transactional": PathState(score=0.6)}
    got = decide(job(), context(two, both))
    assert isinstance(got, Routed)
    assert (got.source, got.queue) == ("tx-2", "transactional")


def test_suppressed_expired_and_over_age_end_a_job():
    c = context(policy(), suppressed={1: "hard bounce"})
    assert decide(job(id=1), c) == Refused("suppressed", "hard bounce")
    got = decide(job(id=2, expires_at=NOW), c)
    assert isinstance(got, Refused)
    assert got.reason == "expired"
    old = decide(job(id=2, accepted_at=NOW - 25 * 3600), c)
    assert isinstance(old, Refused)
    assert old.reason == "expired"
    scheduled = decide(job(id=2, accepted_at=NOW - 25 * 3600, send_at=NOW - 60), c)
    assert isinstance(scheduled, Routed)


def test_max_retries_counts_retries_not_attempts():
    limited = policy(buckets={"transactional": BucketPolicy(retry=Retry(max_retries=3))})
    assert isinstance(decide(job(attempts=3), context(limited)), Routed)
    got = decide(job(attempts=4), context(limited))
    assert isinstance(got, Refused)
    assert got.reason == "expired"


def test_recipient_limit_holds_until_room_and_refuses_the_twenty_first():
    room = {1: RecipientRoom(NOW + 600, 3), 2: RecipientRoom(NOW + 600, 20)}
    c = context(policy(), recipients=room)
    got = decide(job(id=1), c)
    assert isinstance(got, Held)
    assert NOW + 600 <= got.until <= NOW + 660
    refused = decide(job(id=2), c)
    assert isinstance(refused, Refused)
    assert refused.reason == "recipient_limit"
    again = decide(job(id=2, state="held"), c)  # one of the twenty: it goes on waiting
    assert isinstance(again, Held)


@pytest.mark.parametrize(
    "subject",
    ["bucket:transactional", "tenant:acme", "provider:gmail", "pool:transactional", "source:tx-1"],
)
def test_a_pause_holds(subject):
    got = decide(job(), context(policy(), paused={subject: NOW + 50}))
    assert isinstance(got, Held)
    assert NOW < got.until <= NOW + 60
    assert isinstance(decide(job(), context(policy(), paused={subject: NOW - 1})), Routed)


def failing(*, relays: bool = True, failover: bool = True) -> Policy:
    own = {n: Source(n, buckets=("transactional",)) for n in ("a1", "a2", "b1")}
    relay = {"relay": Source("relay", kind="relay", host="relay.test", buckets=("transactional",))}
    return policy(
        sources={**own, **relay},
        pools={
            "a": Pool(
                "a",
                (Member("a1"), Member("a2")),
                failover=("b",) if failover else (),
                relays=("relay",) if relays else (),
            ),
            "b": Pool("b", (Member("b1"),)),
        },
        rules=(Rule(1, "all", Match(), Action(pools=(Share("a", 100),))),),
    )


def broken(*names: str) -> dict[str, FastPath]:
    return {f"{n}|gmail": FastPath(breaker="open", open_until=NOW + 60) for n in names}


def test_breaker_open_takes_the_next_source_then_the_failover_pool():
    seen = {decide(job(recipient=f"r{i}@gmail.com"), context(failing())).source for i in range(50)}
    assert seen == {"a1", "a2"}
    only_a2 = {
        decide(job(recipient=f"r{i}@gmail.com"), context(failing(), None, broken("a1"))).source
        for i in range(50)
    }
    assert only_a2 == {"a2"}
    # b1 works at gmail, so it is not the provider: the next pool takes over
    fine = {**broken("a1", "a2"), "b1|gmail": FastPath()}
    got = decide(job(), context(failing(), None, fine))
    assert isinstance(got, Routed)
    assert (got.pool, got.source) == ("b", "b1")
    assert any("failover to pool b" in r for r in got.reasons)


def test_a_failing_provider_does_not_shift_own_sources_but_takes_the_relay():
    down = broken("a1", "a2")
    got = decide(job(), context(failing(), None, down))
    assert isinstance(got, Routed)
    assert got.source == "relay"
    assert got.orders.relay == "relay"
    waits = decide(job(), context(failing(relays=False), None, down))
    assert isinstance(waits, Held)
    assert NOW + 60 <= waits.until <= NOW + 70


def test_stay_with_is_honoured_or_waited_for():
    for name in ("a1", "a2"):
        got = decide(job(stay_with=name), context(failing()))
        assert isinstance(got, Routed)
        assert got.source == name
    got = decide(job(stay_with="a1"), context(failing(), None, broken("a1")))
    assert isinstance(got, Held)
    assert "stays with source a1" in got.reason
    gone = decide(job(stay_with="gone"), context(failing()))
    assert isinstance(gone, Routed)
    uncertain = decide(job(stay_with="gone", state="uncertain"), context(failing()))
    assert isinstance(uncertain, Held)


def test_warmup_cap_spills_to_the_warm_source_within_one_batch():
    paths = {"news-1|gmail|marketing": PathState(state="warming", cap_day=50)}
    c = context(policy(), paths, {"news-1|gmail": FastPath(used_day=40)})
    jobs = [job(id=i, bucket="marketing", recipient=f"r{i}@gmail.com") for i in range(500)]
    decisions, state = route_many(jobs, c, FRESH)
    by_source = [d.source for d in decisions if isinstance(d, Routed)]
    assert len(by_source) == 500
    assert by_source.count("news-1") == 10
    assert state.used["news-1|gmail"] == 10


def test_header_route_needs_permission_and_isolation():
    wish = {"wishes": Wishes(pool="transactional")}
    got = decide(job(bucket="marketing", **wish), context(policy()))
    assert isinstance(got, Routed)
    assert got.pool == "marketing"
    assert any("header route set aside" in r for r in got.reasons)
    asked = decide(job(wishes=Wishes(pool="b")), context(policy(**as_dict(failing()))))
    assert isinstance(asked, Routed)
    assert (asked.pool, asked.precedence) == ("b", "header")
    closed = context(policy(**{**as_dict(failing()), "header_routing": ("vip-key",)}))
    denied = decide(job(wishes=Wishes(pool="b")), closed)
    assert isinstance(denied, Routed)
    assert (denied.pool, denied.precedence) == ("a", "rule")
    vip = decide(job(wishes=Wishes(pool="b"), api_key="vip-key"), closed)
    assert isinstance(vip, Routed)
    assert vip.precedence == "header"


def as_dict(p: Policy) -> dict[str, object]:
    return {name: getattr(p, name) for name in p.__struct_fields__}


def test_affinity_over_rules_header_over_affinity():
    base = failing()
    with_affinity = msgspec.structs.replace(
        base, affinity=(Affinity("b", sending_domain="example.com"),)
    )
    got = decide(job(), context(with_affinity))
    assert isinstance(got, Routed)
    assert (got.pool, got.precedence) == ("b", "affinity")
    header = decide(job(wishes=Wishes(pool="a")), context(with_affinity))
    assert isinstance(header, Routed)
    assert (header.pool, header.precedence) == ("a", "header")


def test_refuse_and_hold_bind_whatever_asked():
    for action, kind in ((Action(refuse="no such mail"), Refused), (Action(hold="audit"), Held)):
        p = msgspec.structs.replace(failing(), rules=(Rule(1, "stop", Match(), action),))
        got = decide(job(wishes=Wishes(pool="b")), context(p))
        assert isinstance(got, kind)


def test_failover_ramp_lets_marketing_in_by_ten_percent_a_minute():
    names = ("m1", "m2", "n1")
    p = policy(
        sources={n: Source(n, buckets=("marketing", "bulk")) for n in names},
        pools={
            "m": Pool("m", (Member("m1"), Member("m2")), failover=("n",)),
            "n": Pool("n", (Member("n1"),)),
        },
        rules=(Rule(1, "all", Match(), Action(pools=(Share("m", 100),))),),
    )
    fast = {**broken("m1", "m2"), "n1|gmail": FastPath(rate=10.0)}  # 600 a minute
    jobs = [job(id=i, bucket="marketing", recipient=f"r{i}@gmail.com") for i in range(90)]
    decisions, state = route_many(jobs, context(p, None, fast), FRESH)
    assert sum(isinstance(d, Routed) for d in decisions) == 60
    later = context(p, None, fast, now=NOW + 61)
    second, _ = route_many(jobs, later, msgspec.structs.replace(state, fast_version=-1))
    assert sum(isinstance(d, Routed) for d in second) == 90  # up to 120 now


def test_batch_is_the_fold_of_single_decisions_and_records_hold_no_address():
    p = policy()
    jobs = [job(id=i, bucket="marketing", recipient=f"r{i}@gmail.com") for i in range(30)]
    c = context(p)
    many, end = route_many(jobs, c, FRESH)
    state, single = FRESH, []
    for j in jobs:
        d, state = route(j, c, state)
        single.append(d)
    assert single == many
    assert state == end
    for j, d in zip(jobs, many, strict=True):
        body = msgspec.json.encode(record(d, c, j))
        assert b"@" not in body
        assert b'"snapshot":"7.3"' in body


def test_state_survives_encoding():
    _, state = route_many([job(bucket="bulk")], context(policy()), FRESH)
    assert msgspec.json.decode(msgspec.json.encode(state), type=type(state)) == state


def test_a_cold_source_without_a_snapshot_row_has_the_first_days_cap():
    p = policy(
        sources={n: Source(n, buckets=("bulk",), warm=n != "new") for n in ("old", "new")},
        pools={"p": Pool("p", (Member("old"), Member("new")))},
        rules=(Rule(1, "all", Match(), Action(pools=(Share("p", 100),))),),
    )
    jobs = [job(id=i, bucket="bulk", recipient=f"r{i}@gmail.com") for i in range(400)]
    decisions, _ = route_many(jobs, context(p), FRESH)
    assert [d.source for d in decisions].count("new") == p.warmup.start == 50
