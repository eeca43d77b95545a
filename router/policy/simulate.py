"""Rehearsal: recorded or invented jobs against a candidate policy, without sending anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from mailweir.contracts.job import Job
from mailweir.contracts.policy import Policy
from mailweir.contracts.route import Held, Refused, Routed
from mailweir.contracts.snapshot import FastPath, FastState, Snapshot
from router.policy.compiled import CompiledPolicy
from router.policy.context import Context, RouterState
from router.policy.decide import route_many
from router.policy.differences import way
from router.policy.eligibility import BROKEN
from router.policy.reach import NOBODY, Unreached
from router.policy.replay import job_then

BATCH = 300


class Scene(NamedTuple):
    """Jobs that are decided in the same world."""

    jobs: Sequence[Job]
    snapshot: Snapshot
    fast: FastState
    now: float
    suppressed: Mapping[int, str] = {}
    providers: Mapping[str, str] = {}
    zones: Mapping[str, str] = {}
    unreached: Unreached = NOBODY


class Rehearsal(msgspec.Struct, frozen=True):
    """What a policy would do with the jobs: volumes, what waits or ends and why, and the time."""

    jobs: int
    pools: dict[str, int]
    sources: dict[str, int]
    providers: dict[str, int]
    queues: dict[str, int]
    rules: dict[str, int]
    held: dict[str, int]  # reason -> jobs
    refused: dict[str, int]
    limit_hits: dict[str, int]  # a limit, and the jobs beyond what it lets through in a minute
    seconds: float  # the time the backlog would need by the limits
    slowest: str  # the limit that decides it


def rehearse(policy: Policy, scenes: Iterable[Scene]) -> tuple[Rehearsal, list[str]]:
    """Decide all jobs, each in its scene; the summary, and each job's way in order."""
    compiled = CompiledPolicy(policy)
    state = RouterState()
    counts: dict[str, Counter[str]] = {
        name: Counter()
        for name in ("pools", "sources", "providers", "queues", "rules", "held", "refused")
    }
    loads: Counter[tuple[str, str, str]] = Counter()  # pool, source, provider
    buckets: Counter[str] = Counter()
    ways: list[str] = []
    for number, (scene, batch) in enumerate(_batches(scenes)):
        # each batch sees a fresh look at the paths, as in the running router
        context = Context(
            compiled,
            scene.snapshot,
            FastState(number, scene.fast.paths),
            scene.now,
            suppressed=scene.suppressed,
            providers=scene.providers,
            zones=scene.zones,
            unreached=scene.unreached,
        )
        decisions, state = route_many(batch, context, state)
        for job, decision in zip(batch, decisions, strict=True):
            ways.append(way(decision))
            match decision:
                case Routed():
                    counts["pools"][decision.pool] += 1
                    counts["sources"][decision.source] += 1
                    counts["providers"][decision.provider] += 1
                    counts["queues"][decision.queue] += 1
                    counts["rules"][decision.orders.rule] += 1
                    loads[decision.pool, decision.source, decision.provider] += 1
                    buckets[job.bucket] += 1
                case Held():
                    counts["held"][decision.reason] += 1
                case Refused():
                    counts["refused"][decision.reason] += 1
    needed = dict(_times(policy, loads, buckets))
    hits = {
        name: int(load - rate * 60) for name, (load, rate) in needed.items() if load > rate * 60
    }
    slowest = max(needed, key=lambda n: needed[n][0] / needed[n][1], default="")
    seconds = needed[slowest][0] / needed[slowest][1] if slowest else 0.0
    parts = {name: dict(counter.most_common()) for name, counter in counts.items()}
    return (
        Rehearsal(
            jobs=len(ways), limit_hits=hits, seconds=round(seconds, 1), slowest=slowest, **parts
        ),
        ways,
    )


def _batches(scenes: Iterable[Scene]) -> Iterator[tuple[Scene, Sequence[Job]]]:
    for scene in scenes:
        for at in range(0, len(scene.jobs), BATCH):
            yield scene, scene.jobs[at : at + BATCH]


def scene_then(body: Mapping[str, Any], job: Job, snapshot: Snapshot) -> Scene:
    """The scene of a recorded decision: what its record tells, its open breakers among that."""
    domain = job.domain
    provider = body.get("mx") or (domain if job.lane.startswith("~") else job.lane)
    lost = body.get("lost", {}).get(BROKEN, ())
    paths = {f"{name.rpartition('/')[2]}|{provider}": FastPath(breaker="open") for name in lost}
    refused = body.get("outcome") == "refused" and body.get("reason") == "suppressed"
    return Scene(
        (job_then(job, body),),
        snapshot,
        FastState(0, paths),
        body["at"],
        {job.id: body["detail"]} if refused else {},
        {domain: body["mx"]} if body.get("mx") else {},
        {domain: body["zone"]} if body.get("zone") else {},
    )


def _times(
    policy: Policy, loads: Counter[tuple[str, str, str]], buckets: Counter[str]
) -> Iterable[tuple[str, tuple[int, float]]]:
    """Every limit on the jobs' ways: its name, its load, its rate (jobs per second)."""
    paths: Counter[tuple[str, str]] = Counter()
    ceilings: Counter[tuple[str, str]] = Counter()
    quotas: Counter[str] = Counter()
    for (pool, source, provider), load in loads.items():
        paths[source, provider] += load
        ceilings[pool, provider] += load
        quotas[source] += load
    for (source, provider), load in paths.items():
        known = policy.providers.get(provider)
        if known is not None:
            yield f"source {source} at {provider} {known.rate}", (load, known.rate.rate)
    for (pool, provider), load in ceilings.items():
        limit = policy.pools[pool].limits.get(provider)
        if limit is not None:
            yield f"pool {pool} at {provider} {limit}", (load, limit.rate)
    for source, load in quotas.items():
        quota = policy.sources[source].quota
        if quota is not None:
            yield f"quota of {source} {quota}", (load, quota.rate)
    for bucket, load in buckets.items():
        rate = policy.bucket(bucket).rate
        if rate is not None:
            yield f"bucket {bucket} {rate}", (load, rate.rate)
    if policy.global_limit is not None:
        total = sum(loads.values())
        yield f"everything {policy.global_limit}", (total, policy.global_limit.rate)


def compare(
    old: Rehearsal, new: Rehearsal, old_ways: list[str], new_ways: list[str]
) -> dict[str, Any]:
    """The difference in volume per pool and source, and how many jobs go another way."""
    out: dict[str, Any] = {
        "moved": sum(a != b for a, b in zip(old_ways, new_ways, strict=True)),
    }
    for name in ("pools", "sources", "providers"):
        before, after = getattr(old, name), getattr(new, name)
        changes = {
            key: after.get(key, 0) - before.get(key, 0)
            for key in sorted({*before, *after})
            if after.get(key, 0) != before.get(key, 0)
        }
        out[name] = changes
    return out
