"""The seeds' routing examples, from YAML to decision."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from mailweir.contracts.job import Wishes
from mailweir.contracts.policy import Policy
from mailweir.contracts.route import Held, Routed
from mailweir.contracts.snapshot import FastPath, PathState
from router.policy.decide import route, route_many
from router.policy.loader import load
from tests.unit.router.build import FRESH, NOW, context, job

EXAMPLES = Path(__file__).parents[3] / "examples"
SEED = """
sources:
  premium-1: {ip: 192.0.2.1}
  trust-1: {ip: 192.0.2.2}
  trust-2: {ip: 192.0.2.3}
  bulk-1: {ip: 192.0.2.4}
  bulk-2: {ip: 192.0.2.5, warm: false}
  default-1: {ip: 192.0.2.6}
pools:
  premium-transactional: {sources: [premium-1], buckets: [transactional]}
  high-trust: {sources: [trust-1, trust-2]}
  bulk: {sources: [bulk-1]}
  warm: {sources: [bulk-1, bulk-2]}
  default: {sources: [default-1]}
rules:
  - name: critical
    match: {recipient_domain: "@critical-client.com", type: transactional}
    action: {pool: premium-transactional, require_signature: true}
  - name: transactional
    match: {type: transactional}
    action: {pool: high-trust, retry_hard: false}
  - name: marketing
    match: {type: marketing}
    action: {pool: bulk, daily_limit: 1000}
  - name: freemail
    match: {provider: (gmail|yahoo|outlook)}
    action: {pool: warm, warm_only: true, strict: true}
  - name: catch-all
    action: {pool: default}
domains:
  example.com: {dkim: [{selector: s1, secret: "env:KEY"}]}
header_routing: [acme]
"""


def policy(text: str = SEED) -> Policy:
    loaded = load(text)
    assert loaded.ok, "\n".join(map(str, loaded.problems))
    return loaded.policy


def way(j, c=None):
    decision, _ = route(j, c or context(policy()), FRESH)
    assert isinstance(decision, Routed), decision
    return decision


def test_critical_client_goes_by_the_premium_pool_signed():
    got = way(job(recipient="ceo@critical-client.com", lane="~10"))
    assert (got.pool, got.orders.sign, got.orders.rule) == (
        "premium-transactional",
        True,
        "critical",
    )
    unsigned = job(recipient="ceo@critical-client.com", mail_from="a@keyless.example")
    held, _ = route(unsigned, context(policy()), FRESH)
    assert isinstance(held, Held)
    assert "no DKIM key" in held.reason
    assert "@" not in held.reason


def test_transactional_without_retry_on_hard_bounce():
    got = way(job())
    assert (got.pool, got.queue, got.orders.retry_hard) == ("high-trust", "transactional", False)


def test_marketing_to_bulk_with_a_daily_limit():
    got = way(job(bucket="marketing"))
    assert (got.pool, got.orders.daily_limit) == ("bulk", 1000)


@pytest.mark.parametrize("provider", ["gmail", "yahoo", "outlook"])
def test_freemail_takes_warm_sources_with_strict_limits(provider):
    for i in range(30):
        got = way(job(bucket="bulk", recipient=f"u{i}@{provider}.com", lane=provider))
        assert (got.pool, got.source, got.orders.strict) == ("warm", "bulk-1", True)


def test_everything_else_is_caught():
    got = way(job(bucket="bulk", recipient="u@small.example", lane="~33"))
    assert (got.pool, got.orders.rule) == ("default", "catch-all")


def test_header_pool_overrides_rules_for_who_may_ask():
    wish = Wishes(pool="premium-transactional")
    got = way(job(wishes=wish, tenant="acme"))
    assert (got.pool, got.precedence) == ("premium-transactional", "header")
    other = way(job(wishes=wish, tenant="stranger"))
    assert (other.pool, other.precedence) == ("high-trust", "rule")


@pytest.mark.parametrize(("first", "second"), [(80, 20), (60, 40)])
def test_weighted_pools_are_exact_over_every_thousand(first, second):
    text = f"""
sources: {{a: {{}}, b: {{}}}}
pools: {{a: {{sources: [a], buckets: [bulk, marketing]}}, b: {{sources: [b], buckets: [bulk, marketing]}}}}
rules:
  - {{name: tx, match: {{bucket: transactional}}, action: {{refuse: not here}}}}
  - {{name: all, action: {{pools: {{a: {first}, b: {second}}}}}}}
"""
    jobs = [job(id=i, bucket="bulk", recipient=f"u{i}@gmail.com") for i in range(3000)]
    decisions, _ = route_many(jobs, context(policy(text)), FRESH)
    pools = [d.pool for d in decisions]
    for start in range(0, 2000, 91):
        assert Counter(pools[start : start + 1000]) == {"a": first * 10, "b": second * 10}


REGIONAL = """
regions: [eu, us]
sources: {e1: {region: eu}, u1: {region: us}}
pools: {all: {sources: [e1, u1], buckets: [marketing, bulk]}}
rules:
  - {name: tx, match: {bucket: transactional}, action: {refuse: not here}}
  - {name: all, action: {pool: all}}
geo: {europe: {eu: 100}, america: {us: 100}}
residency: {eu-only: [eu]}
"""


@pytest.mark.parametrize(("zone", "source"), [("europe", "e1"), ("america", "u1")])
def test_regions_follow_the_zone_of_the_mx(zone, source):
    c = context(policy(REGIONAL), zones={"gmail.com": zone})
    for i in range(20):
        got = way(job(bucket="bulk", recipient=f"u{i}@gmail.com"), c)
        assert got.source == source
        assert got.queue == f"bulk@{c.policy.sources[source].region}"


def test_residency_holds_rather_than_leaks():
    down = {"e1|gmail": FastPath(breaker="open", open_until=NOW + 60), "u1|gmail": FastPath()}
    c = context(policy(REGIONAL), None, down, zones={"gmail.com": "america"})
    held, _ = route(job(bucket="bulk", residency="eu-only"), c, FRESH)
    assert isinstance(held, Held)
    assert {r.why for r in held.rejected} == {
        "breaker open",
        "residency eu-only: region us is not allowed",
    }


def test_twenty_five_pools_of_twenty_with_failover_chains():
    pools = [f"p{i}" for i in range(25)]
    text = "sources:\n" + "".join(
        f"  {p}-{s}: {{buckets: [marketing, bulk]}}\n" for p in pools for s in range(20)
    )
    text += "pools:\n" + "".join(
        f"  {p}: {{sources: [{', '.join(f'{p}-{s}' for s in range(20))}]"
        + (f", failover: [p{i + 1}]" if i < 24 else "")
        + "}\n"
        for i, p in enumerate(pools)
    )
    text += (
        "rules: [{match: {bucket: transactional}, action: {refuse: never}}, {action: {pool: p0}}]\n"
    )
    big = policy(text)
    # all but the last pool are suspended: the chain is followed to its end
    paths = {
        f"{name}|gmail|bulk": PathState(state="suspended", until=NOW + 60)
        for name in big.sources
        if not name.startswith("p24-")
    }
    got = way(job(bucket="bulk"), context(big, paths))
    assert got.pool == "p24"
    assert len(got.rejected) == 24 * 20


def test_the_articles_template():
    with open(EXAMPLES / "policy-template.yaml", "rb") as file:
        loaded = load(file.read())
    p = loaded.policy
    assert loaded.ok
    assert (p.buckets["transactional"].priority, p.buckets["marketing"].priority) == (1, 8)
    assert str(p.buckets["transactional"].worker_rate) == "100/min"
    assert p.buckets["transactional"].retry.max_retries == 3
    assert p.buckets["bulk"] == msgspec.structs.replace(p.buckets["marketing"])
    assert (p.warmup.start, p.warmup.growth, p.warmup.max_step) == (100, 0.2, 5000)
    assert p.thresholds.bounce_rate == 0.02
    assert p.domains["mail.example.com"].dkim_record == "selector1._domainkey.example.com"
    for bucket, pool in (
        ("transactional", "dedicated-transactional"),
        ("marketing", "shared-marketing"),
        ("bulk", "shared-marketing"),
    ):
        got = way(job(bucket=bucket), context(p))
        assert (got.queue, got.pool, got.source) == (bucket, pool, "default")
    told = "\n".join(map(str, loaded.problems))
    for words in ("bulk is not given", "no catch-all", "only named", "each worker", "7 minutes"):
        assert words in told


def test_an_ab_split_names_its_arm_and_shifts_gradually():
    text = """
sources: {a: {}, b: {}}
pools: {p: {sources: [a, b], buckets: [bulk, marketing]}}
splits:
  try-b:
    arms: [{pool: p, source: a, weight: 100, to: 0}, {pool: p, source: b, weight: 0, to: 100}]
    shift: {start: 2026-01-01T00:00:00Z, over: 10d}
rules:
  - {match: {bucket: transactional}, action: {refuse: never}}
  - {action: {split: try-b}}
"""
    p = policy(text)
    start = p.splits["try-b"][0].shift_start
    jobs = [
        job(id=i, bucket="bulk", recipient=f"u{i}@gmail.com", accepted_at=start - 9)
        for i in range(1000)
    ]
    for days, expected in ((-1, 0), (2.5, 250), (5, 500), (20, 1000)):
        late = [msgspec.structs.replace(j, accepted_at=start + days * 86400 - 5) for j in jobs]
        decisions, _ = route_many(late, context(p, now=start + days * 86400), FRESH)
        arms = Counter(d.orders.arm for d in decisions)
        assert abs(arms["try-b/p/b"] - expected) <= (5 if 0 < expected < 1000 else 0)
        assert arms["try-b/p/a"] + arms["try-b/p/b"] == 1000
