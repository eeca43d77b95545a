"""Laws of routing, checked by Hypothesis."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mailweir.contracts.policy import (
    Action,
    BucketPolicy,
    Match,
    Member,
    Policy,
    Pool,
    Rule,
    Share,
    Source,
)
from mailweir.contracts.route import Held, Refused, Routed
from mailweir.contracts.snapshot import FastPath, PathState
from mailweir.plumbing.policies import _slot
from router.policy import shares
from router.policy.compiled import CompiledPolicy
from router.policy.decide import decide, route, route_many
from router.policy.draft import Draft
from router.policy.explain import explain
from router.policy.fairness import QUANTUM, STEP_SHARE, plan, served
from router.policy.record import record
from router.policy.replay import replay
from router.policy.rules import Facts, RuleIndex, compile_match
from tests.unit.router.build import FRESH, NOW, context, job

REGIONS = ("eu", "us", "")


# --- weights -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=25).filter(any), st.integers(0, 2500))
def test_every_window_of_a_thousand_holds_the_exact_share_rounded(weights, start):
    turn, drawn = shares.begin(weights), []
    for _ in range(start + 1000):
        arm, turn = shares.draw(turn, weights)
        drawn.append(arm)
    window = Counter(drawn[start:])
    for arm, weight in enumerate(weights):
        exact = 1000 * weight / sum(weights)
        assert abs(window[arm] - exact) < 1


def test_eighty_twenty_and_sixty_forty_are_exact_and_smooth():
    for weights in ((80, 20), (60, 40)):
        turn, drawn = shares.begin(weights), []
        for _ in range(5000):
            arm, turn = shares.draw(turn, weights)
            drawn.append(arm)
        for at in range(0, 4000, 37):
            assert drawn[at : at + 1000].count(0) == weights[0] * 10
        assert all(drawn[at : at + 10].count(0) in (weights[0] // 10,) for at in range(0, 4990, 10))


def test_nothing_is_lost_in_the_long_run():
    weights = (1, 2999)  # a third of a job per window
    turn, count = shares.begin(weights), Counter()
    for _ in range(30_000):
        arm, turn = shares.draw(turn, weights)
        count[arm] += 1
    assert count[0] == 10


@settings(max_examples=80)
@given(
    st.lists(st.integers(0, 100), min_size=2, max_size=6).filter(any),
    st.integers(1, 1 << 62),
    st.text(max_size=20),
)
def test_arms_of_a_split_have_their_share_of_any_run_of_jobs(weights, first, split):
    """Whoever draws: the arm depends on job and split only (S20)."""
    count = Counter(shares.arm_of(first + i, split, weights) for i in range(1000))
    for arm, weight in enumerate(weights):
        assert abs(count[arm] - 1000 * weight / sum(weights)) <= 10
        assert weight or not count[arm]


@settings(max_examples=60)
@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 1 << 62))
def test_a_heavier_arm_takes_jobs_and_gives_none_away(weight, more, job_id):
    before = shares.arm_of(job_id, "s", (100 - weight, weight))
    after = shares.arm_of(job_id, "s", (100 - max(weight, more), max(weight, more)))
    assert after >= before


def test_a_splits_arms_are_even_within_a_canary_too():
    """The canary's jobs are chosen by job id as well: no arm may be theirs alone."""
    count = Counter(shares.arm_of(i, "s", (50, 50)) for i in range(40_000) if _slot(i) < 5)
    assert abs(count[0] - count[1]) < 0.05 * count.total()


SPLIT = Policy(
    sources={n: Source(n, buckets=("bulk",)) for n in ("a1", "a2", "b1")},
    pools={
        "a": Pool("a", (Member("a1"), Member("a2")), failover=("b",)),
        "b": Pool("b", (Member("b1"),), failover=("a",)),
    },
    splits={"trial": (Share("a", 60), Share("b", 40))},
    rules=(Rule(1, "all", Match(), Action(split="trial")),),
)


@settings(max_examples=40)
@given(st.integers(1, 1 << 62), st.integers(0, 30), st.booleans())
def test_a_job_keeps_its_arm_over_its_retries(job_id, others, outage):
    """Whatever other jobs a router decides in between, and though an attempt went by failover."""
    c, state = context(SPLIT), FRESH
    first, state = route(job(id=job_id, bucket="bulk"), c, state)
    for i in range(others):
        _, state = route(job(id=i, bucket="bulk"), c, state)
    if outage:
        down = {f"{n}|gmail": FastPath(breaker="open", open_until=NOW + 60) for n in ("a1", "a2")}
        down["b1|gmail"] = FastPath()
        decision, state = route(
            job(id=job_id, bucket="bulk", attempts=1), context(SPLIT, fast_paths=down), state
        )
        if first.pool == "a":
            assert (decision.pool, decision.orders.arm) == ("b", "")
    again = job(id=job_id, bucket="bulk", attempts=2, state="deferred")
    late = msgspec.structs.replace(c, now=NOW + 7200)
    assert route(again, late, state)[0].orders.arm == first.orders.arm == f"trial/{first.pool}"


# --- worlds ------------------------------------------------------------------------------------


@st.composite
def worlds(draw):
    """A policy of a few pools with regions, failover, relays, and a state of every path."""
    names = [f"s{i}" for i in range(draw(st.integers(1, 6)))]
    sources = {
        n: Source(
            n,
            kind=draw(st.sampled_from(("mx", "mx", "relay"))),
            host="r.test",
            region=draw(st.sampled_from(REGIONS)) or None,
            buckets=draw(st.sampled_from((("transactional",), ("marketing", "bulk")))),
        )
        for n in names
    }
    pool_names = [f"p{i}" for i in range(draw(st.integers(1, 4)))]
    relays = [n for n in names if sources[n].kind == "relay"]
    pools = {
        name: Pool(
            name,
            tuple(
                Member(s, draw(st.sampled_from((1.0, 2.0))))
                for s in draw(st.lists(st.sampled_from(names), min_size=1, max_size=5, unique=True))
            ),
            failover=tuple(pool_names[i + 1 :][: draw(st.integers(0, 2))]),
            relays=tuple(relays[: draw(st.integers(0, 5))]),
            sticky=draw(st.booleans()),
        )
        for i, name in enumerate(pool_names)
    }
    arms = tuple(Share(n, draw(st.integers(0, 100))) for n in pool_names)
    policy = Policy(
        sources=sources,
        pools=pools,
        rules=(Rule(1, "all", Match(), Action(pools=arms)),),
        buckets={b: BucketPolicy() for b in ("transactional", "marketing", "bulk")},
        residency={"eu-only": ("eu",)},
    )
    bucket = draw(st.sampled_from(("transactional", "marketing", "bulk")))
    paths = {
        f"{n}|gmail|{bucket}": PathState(
            score=draw(st.sampled_from((0.2, 0.5, 0.65, 0.8, 1.0))),
            state=draw(st.sampled_from(("warm", "warming", "suspended", "slowed"))),
            cap_day=draw(st.sampled_from((None, 0, 5))),
            until=draw(st.sampled_from((None, NOW - 5, NOW + 100))),
        )
        for n in names
        if draw(st.booleans())
    }
    fast = {
        f"{n}|gmail": FastPath(
            rate=draw(st.sampled_from((None, 0.1, 5.0))),
            breaker=draw(st.sampled_from(("closed", "open", "half_open"))),
            open_until=NOW + 60,
            used_day=draw(st.integers(0, 6)),
            available_at=draw(st.sampled_from((0.0, NOW + 30))),
        )
        for n in names
        if draw(st.booleans())
    }
    residency = draw(st.sampled_from((None, "eu-only", "moon")))
    jobs = [
        job(
            id=i,
            bucket=bucket,
            recipient=f"r{i}@gmail.com",
            residency=residency,
            stay_with=draw(st.sampled_from((None, None, "s0", "gone"))),
            expires_at=draw(st.sampled_from((None, NOW + 20, NOW + 5000))),
        )
        for i in range(draw(st.integers(1, 12)))
    ]
    return context(policy, paths, fast), jobs


@settings(max_examples=150)
@given(worlds())
def test_decisions_obey_what_binds(world):
    c, jobs = world
    decisions, state = route_many(jobs, c, FRESH)
    for j, d in zip(jobs, decisions, strict=True):
        match d:
            case Routed():
                source = c.policy.policy.sources[d.source]
                assert j.bucket in source.buckets  # isolation, also in failover
                if j.meta.residency:  # residency, whatever fails; an undefined one fails closed
                    assert (source.region, j.meta.residency) == ("eu", "eu-only")
                path = c.snapshot.path(d.source, "gmail", j.bucket)
                assert path.score >= 0.4
            case Held():  # never without time and reason
                assert d.until > NOW
                assert d.reason
                assert j.expires_at is None or d.until <= j.expires_at
            case Refused():
                assert d.reason
    # caps hold over the whole batch
    used = Counter(d.source for d in decisions if isinstance(d, Routed))
    for name, count in used.items():
        path = c.snapshot.path(name, "gmail", jobs[0].bucket)
        if path.cap_day is not None:
            assert c.fast.path(name, "gmail").used_day + count <= path.cap_day
    # determinism: the same arguments, the same results; and one by one is the batch
    assert route_many(jobs, c, FRESH) == (decisions, state)
    folded = FRESH
    for j, d in zip(jobs, decisions, strict=True):
        before = folded
        again, folded = route(j, c, folded)
        assert again == d
        # explain decides the same, and a record expands to itself
        assert explain(j, c, before)["source"] == (d.source if isinstance(d, Routed) else None)
        body = msgspec.json.decode(msgspec.json.encode(record(d, c, j)))
        later = msgspec.structs.replace(j, attempts=3, state="sent", stay_with=None)
        done = replay(body, later, CompiledPolicy(c.policy.policy), c.snapshot)
        assert done.same, (body, record(done.decision, c, j))
        expanded = done.explanation
        assert [expanded["pool"], expanded["source"]] == [body.get("pool"), body.get("source")]
        # every loser of the record stands in the expansion, for the same reason
        why = {(k["pool"], k["source"]): k["rejected_because"] for k in expanded["candidates"]}
        for reason, names in body.get("lost", {}).items():
            for name in names:
                key = tuple(name.rsplit("/", 1))
                won = key == (body.get("pool"), body.get("source"))
                assert won or why[key] == reason or "isolation" in reason
    assert folded == state


@settings(max_examples=40)
@given(st.integers(2, 12), st.integers(0, 11), st.booleans())
def test_removing_a_source_moves_only_its_own_keys(n, victim, sticky_by_recipient):
    victim %= n
    names = [f"s{i}" for i in range(n)]
    lane = "gmail" if sticky_by_recipient else "~00"

    def homes(keep):
        p = Policy(
            sources={s: Source(s, buckets=("bulk",)) for s in keep},
            pools={"p": Pool("p", tuple(Member(s, 1.0 + names.index(s) % 3) for s in keep))},
            rules=(Rule(1, "all", Match(), Action(pools=(Share("p", 100),))),),
            buckets={"bulk": BucketPolicy()},
        )
        draft = Draft(context(p), FRESH)
        jobs = [
            job(id=i, bucket="bulk", recipient=f"r{i}@d{i}.example", lane=lane) for i in range(200)
        ]
        return [decide(j, draft).source for j in jobs]

    before = homes(names)
    after = homes([s for s in names if s != names[victim]])
    for old, new in zip(before, after, strict=True):
        assert old == new or old == names[victim]


def test_shares_inside_a_pool_hold_within_two_percent_of_ten_thousand():
    weights = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 1.0}
    for sticky in (True, False):
        p = Policy(
            sources={s: Source(s, buckets=("bulk",)) for s in weights},
            pools={"p": Pool("p", tuple(Member(s, w) for s, w in weights.items()), sticky=sticky)},
            rules=(Rule(1, "all", Match(), Action(pools=(Share("p", 100),))),),
            buckets={"bulk": BucketPolicy()},
        )
        jobs = [job(id=i, bucket="bulk", recipient=f"user{i}@gmail.com") for i in range(10_000)]
        decisions, _ = route_many(jobs, context(p), FRESH)
        count = Counter(d.source for d in decisions)
        for name, weight in weights.items():
            assert abs(count[name] - 10_000 * weight / 7) <= 200


# --- rules -------------------------------------------------------------------------------------

_PATTERN = st.sampled_from(("a.example", "*.example", "b.a.example|c.test", "*", "c.tes?"))
_MATCHES = st.builds(
    Match,
    bucket=st.sampled_from(((), ("bulk",), ("marketing|bulk",))),
    recipient_domain=st.lists(_PATTERN, max_size=2).map(tuple),
    tenant=st.sampled_from(((), ("acme",), ("o*",))),
    tag=st.sampled_from(((), ("x",), ("y|x",))),
    provider=st.sampled_from(((), ("gmail",))),
)


@settings(max_examples=200)
@given(
    st.lists(_MATCHES, max_size=12),
    st.sampled_from(("a.example", "b.a.example", "c.test", "other.org")),
    st.sampled_from(("acme", "other")),
    st.sampled_from(((), ("x",), ("y", "z"))),
)
def test_the_index_finds_the_first_match_a_plain_walk_finds(matches, domain, tenant, tags):
    rules = [Rule(100 - i, f"r{i}", m) for i, m in enumerate(matches)]
    j = job(bucket="bulk", recipient=f"u@{domain}", tenant=tenant, tags=tags)
    facts = Facts(j, domain, "gmail", "example.com", "", "", NOW)
    plain = next(
        (r for r in sorted(rules, key=lambda r: r.number) if compile_match(r.match)(facts)), None
    )
    assert RuleIndex(rules).first(facts) == plain


# --- fairness ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flow:
    lane: str
    tenant: str
    priority: int
    head_due: float
    engaged: bool = False


_FLOWS = st.lists(
    st.builds(
        Flow,
        st.sampled_from(("gmail", "outlook", "~01")),
        st.sampled_from(("a", "b", "c")),
        st.integers(1, 10),
        st.floats(NOW - 5000, NOW + 50),
        st.booleans(),
    ),
    max_size=20,
    unique=True,
)


@given(_FLOWS, st.integers(0, 500), st.integers(0, 60))
def test_a_plan_keeps_to_room_and_lanes_and_due_times(flows, room, gmail):
    picks = plan(flows, room, NOW, {"gmail": gmail})
    assert sum(limit for _, limit in picks) <= room
    assert sum(limit for flow, limit in picks if flow.lane == "gmail") <= gmail
    assert all(flow.head_due <= NOW and limit > 0 for flow, limit in picks)
    assert len({id(flow) for flow, _ in picks}) == len(picks)


@settings(max_examples=30)
@given(st.integers(1, 10), st.integers(1, 40), st.integers(1, 3))
def test_no_flow_starves_under_a_stream_of_priority_one(priority, room, rivals):
    """Whatever keeps arriving at priority 1, an older job is picked in bounded time."""
    patient = Flow("gmail", "small", priority, NOW)
    for tick in range(2 * (priority + 2)):
        now = NOW + tick * 600.0
        rush = [Flow("gmail", f"big{i}", 1, now) for i in range(rivals)]
        picks = dict(plan([*rush, patient], room, now, {}, ageing=600.0))
        if picks.get(patient):
            return
    raise AssertionError("the patient flow was never picked")


def test_tenants_share_by_weight_and_priority_one_goes_first():
    flows = [Flow("gmail", t, 5, NOW - 1) for t in ("a", "b")] + [Flow("gmail", "a", 1, NOW - 1)]
    picks = plan(flows, 400, NOW, {}, {"b": 3.0})
    assert picks[0][0].priority == 1
    assert picks[0][1] == 400 * STEP_SHARE
    got = Counter()
    for flow, limit in plan(flows[:2], 400, NOW, {}, {"b": 3.0}):
        got[flow.tenant] += limit
    assert got == {"a": 100, "b": 300}


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(2, 20), st.booleans())
def test_no_tenant_starves_where_the_room_is_small(room, tenants, blocked):
    """One tenant's backlog is older than all others', for ever; a lane may be full for good, too."""
    flows = [Flow("gmail", f"t{i}", 5, NOW - 100 + i) for i in range(tenants)]
    stuck = [Flow("yahoo", "stuck", 5, NOW - 500)] if blocked else []
    got, before = Counter(), {}
    for _ in range(10 * tenants):
        picks = plan([*flows, *stuck], room, NOW, {"yahoo": 0}, before=before)
        before = served(picks, [*flows, *stuck], before=before)
        for flow, limit in picks:
            got[flow.tenant] += limit
    assert sum(got.values()) == room * 10 * tenants
    assert max(got.values()) - min(got[flow.tenant] for flow in flows) <= 2 * QUANTUM


def test_records_are_small():
    p = Policy(
        sources={f"s{i}": Source(f"s{i}", buckets=("bulk",)) for i in range(20)},
        pools={"p": Pool("p", tuple(Member(f"s{i}") for i in range(20)))},
        rules=(Rule(1, "all", Match(), Action(pools=(Share("p", 100),))),),
        buckets={"bulk": BucketPolicy()},
    )
    down = {f"s{i}|gmail": FastPath(breaker="open", open_until=NOW + 9) for i in range(20)}
    c = context(p, None, down)
    d, _ = route(job(bucket="bulk"), c, FRESH)
    body = msgspec.json.encode(record(d, c, job(bucket="bulk")))
    assert isinstance(d, Held)
    assert len(body) < 600
    assert body.count(b"breaker open") == 2  # in the sentence and as the one group
