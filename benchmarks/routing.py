"""How fast the router decides, on one core: ``python -m benchmarks.routing``.

25 pools x 20 sources x 100 rules, forty providers with a snapshot row for every path, batches of 300,
and how the cost grows with rules (10/100/1,000) and sources per pool. Prints a table; exits 1 below the
target of 15,000 decisions a second.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from mailweir.contracts.job import Bucket, Job, JobMeta
from mailweir.contracts.policy import Action, Match, Member, Policy, Pool, Rule, Share, Source
from mailweir.contracts.route import Routed
from mailweir.contracts.snapshot import FastPath, FastState, PathState, Snapshot
from router.policy.compiled import CompiledPolicy
from router.policy.context import Context, RouterState
from router.policy.decide import route_many
from router.policy.default import default_buckets

TARGET = 15_000
BATCH = 300
PROVIDERS = [f"provider{i}" for i in range(40)]
NOW = 1_790_000_000.0


def build_policy(pools: int, sources: int, rules: int) -> Policy:
    """Rules of the kinds operators write: domains, suffixes, tenants, tags, headers, providers."""
    names = [f"pool{p}" for p in range(pools)]
    kinds = [
        lambda i: Match(recipient_domain=(f"client{i}.example",)),
        lambda i: Match(recipient_domain=(f"*.corp{i}.example",)),
        lambda i: Match(tenant=(f"tenant{i}",)),
        lambda i: Match(tag=(f"tag{i}",), bucket=("marketing",)),
        lambda i: Match(sending_domain=(f"brand{i}.example",)),
        lambda i: Match(provider=(PROVIDERS[i % 40],), risk=("high",)),
        lambda i: Match(campaign=(f"campaign{i}",)),
        lambda i: Match(api_key=(f"key{i}",)),
    ]
    made = [
        Rule(i, f"rule{i}", kinds[i % len(kinds)](i), Action(pools=(Share(names[i % pools], 100),)))
        for i in range(rules - 1)
    ]
    shares = tuple(Share(name, 1 + i * 3 % 100) for i, name in enumerate(names))
    made.append(Rule(rules, "catch-all", Match(), Action(pools=shares)))
    return Policy(
        sources={
            f"s{p}-{s}": Source(f"s{p}-{s}", buckets=("marketing", "bulk"))
            for p in range(pools)
            for s in range(sources)
        },
        pools={
            name: Pool(
                name,
                tuple(Member(f"s{p}-{s}", 1.0 + s % 3) for s in range(sources)),
                failover=(names[(p + 1) % pools],) if p + 1 < pools else (),
            )
            for p, name in enumerate(names)
        },
        rules=tuple(made),
        buckets=default_buckets(),
    )


def build_jobs(count: int, rules: int, rng: random.Random) -> list[Job]:
    """Half to named providers, half to small domains; one in five meets a rule of its own."""
    jobs = []
    for i in range(count):
        known = rng.random() < 0.5
        provider = rng.choice(PROVIDERS) if known else f"~{rng.randrange(64):02x}"
        domain = f"{provider}.example" if known else f"small{rng.randrange(5000)}.example"
        special = rng.random() < 0.2
        n = rng.randrange(max(rules, 1))
        meta = JobMeta(
            tags=(f"tag{n}",) if special else ("news",),
            campaign=f"campaign{n}" if special else "spring",
            api_key="key",
        )
        jobs.append(
            Job(
                i,
                1,
                "tenant",
                Bucket.MARKETING,
                5,
                f"user{i}@{domain}",
                "news@brand.example",
                provider,
                1,
                "accepted",
                NOW - 5,
                NOW,
                None,
                0,
                meta,
            )
        )
    return jobs


def measure(pools: int, sources: int, rules: int, count: int, seed: int = 7) -> float:
    """Decisions per second of CPU time, everything included."""
    rng = random.Random(seed)
    policy = build_policy(pools, sources, rules)
    paths = {
        f"{name}|{provider}|marketing": PathState(score=rng.uniform(0.6, 1.0))
        for name in policy.sources
        for provider in PROVIDERS
    }
    fast = FastState(
        1, {f"{n}|{p}": FastPath(rate=500.0) for n in policy.sources for p in PROVIDERS[:10]}
    )
    context = Context(CompiledPolicy(policy), Snapshot(1, NOW, 1, paths), fast, NOW)
    jobs = build_jobs(count, rules, rng)
    state = RouterState()
    route_many(jobs[:BATCH], context, state)
    began = time.process_time()
    routed = 0
    for at in range(0, count, BATCH):
        decisions, state = route_many(jobs[at : at + BATCH], context, state)
        routed += sum(isinstance(d, Routed) for d in decisions)
    spent = time.process_time() - began
    if routed != count:
        raise SystemExit(f"only {routed} of {count} jobs were routed: the benchmark is wrong")
    return count / spent


def main() -> int:
    """Print the table; 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=30_000)
    count = parser.parse_args().jobs
    rows = [
        ("target case", 25, 20, 100),
        ("10 rules", 25, 20, 10),
        ("1,000 rules", 25, 20, 1000),
        ("20 sources", 1, 20, 100),
        ("500 sources", 25, 20, 100),
        ("500 sources in one pool", 1, 500, 100),
    ]
    first = 0.0
    print(f"{'case':26}{'pools':>6}{'sources':>9}{'rules':>7}{'decisions/s':>13}{'us each':>9}")
    for name, pools, sources, rules in rows:
        rate = measure(pools, sources, rules, count)
        first = first or rate
        print(f"{name:26}{pools:6}{pools * sources:9}{rules:7}{rate:13,.0f}{1e6 / rate:9.1f}")
    return 0 if first >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
