"""Why a job goes where it goes: the decision, expanded to every candidate. Nothing is sent or changed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mailweir.contracts.job import Job
from mailweir.contracts.policy import Policy
from mailweir.contracts.route import Decision, Held, Refused, Routed
from mailweir.contracts.snapshot import PathState
from router.policy.context import Context, RouterState
from router.policy.decide import decide
from router.policy.draft import Draft
from router.policy.search import Trace


def explain(job: Job, context: Context, state: RouterState | None = None) -> dict[str, Any]:
    """The decision with all candidates of the pools in play, in the order they are asked.

    Keys: ``outcome`` (routed | held | refused | expired), ``queue``, ``pool``, ``source``, ``rule``,
    ``reasons``, ``candidates`` (pool, source, weight, score, rejected_because: None for the chosen),
    ``limits`` (the throttles the job will meet: layer, limit), ``precedence``
    (header | affinity | rule | default).
    """
    trace = Trace()
    decision = decide(job, Draft(context, state or RouterState()), trace)
    return described(job, decision, trace, context)


def described(job: Job, decision: Decision, trace: Trace, context: Context) -> dict[str, Any]:
    """A decision and its trace as :func:`explain` gives them."""
    chosen = (decision.pool, decision.source) if isinstance(decision, Routed) else None
    return {
        "outcome": _outcome(decision),
        "queue": decision.queue if isinstance(decision, Routed) else None,
        "pool": chosen[0] if chosen else None,
        "source": chosen[1] if chosen else None,
        "rule": trace.rule.name if trace.rule is not None else (_rule(decision) or None),
        "reasons": _reasons(decision),
        "candidates": _candidates(trace, chosen),
        "limits": _limits(job, decision, trace, context),
        "precedence": decision.precedence
        if isinstance(decision, Routed)
        else (trace.wanted.level if trace.wanted is not None else None),
    }


def _outcome(decision: Decision) -> str:
    match decision:
        case Routed():
            return "routed"
        case Held():
            return "held"
        case Refused():
            return "expired" if decision.reason == "expired" else "refused"


def _rule(decision: Decision) -> str:
    return decision.rule if isinstance(decision, Held | Refused) else decision.orders.rule


def _reasons(decision: Decision) -> list[str]:
    match decision:
        case Routed():
            return list(decision.reasons)
        case Held():
            until = datetime.fromtimestamp(decision.until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            return [decision.reason, f"looked at again at {until}"]
        case Refused():
            return [decision.reason, *([decision.detail] if decision.detail else [])]


def _candidates(trace: Trace, chosen: tuple[str, str] | None) -> list[dict[str, Any]]:
    out = []
    for c, why in trace.looked:
        if (c.pool, c.name) == chosen:
            why = None
        out.append(
            {
                "pool": c.pool,
                "source": c.name,
                "weight": round(c.weight, 4),
                "score": round(c.path.score, 4),
                "rejected_because": why,
            }
        )
    out.extend(
        {
            "pool": pool,
            "source": source,
            "weight": None,
            "score": None,
            "rejected_because": "isolation: it does not serve this bucket",
        }
        for pool, source in trace.barred
    )
    return out


def _limits(job: Job, decision: Decision, trace: Trace, context: Context) -> list[dict[str, str]]:
    """The layers of limits on this job's way, outermost last; what counts is the tightest."""
    if not isinstance(decision, Routed):
        return []
    policy = context.policy.policy
    path = context.snapshot.path(decision.source, decision.provider, job.bucket)
    out = [*_path_limits(policy, decision, path)]
    pool = policy.pools.get(decision.pool)
    if pool is not None and decision.provider in pool.limits:
        ceiling = pool.limits[decision.provider]
        out.append((f"pool {decision.pool} at {decision.provider}", str(ceiling)))
    bucket = policy.bucket(job.bucket)
    if decision.orders.rate:
        out.append((f"rule {decision.orders.rule}", decision.orders.rate))
    if decision.orders.daily_limit is not None:
        out.append((f"rule {decision.orders.rule}, a day", str(decision.orders.daily_limit)))
    for layer, limit in (
        (f"bucket {job.bucket}", bucket.rate),
        (f"bucket {job.bucket}, each worker", bucket.worker_rate),
        ("recipient", bucket.recipient_limit),
        (f"tenant {job.tenant}", policy.tenant_limits.get(job.tenant)),
        ("everything", policy.global_limit),
    ):
        if limit is not None:
            out.append((layer, str(limit)))
    return [{"layer": layer, "limit": limit} for layer, limit in out]


def _path_limits(policy: Policy, decision: Routed, path: PathState) -> list[tuple[str, str]]:
    out = []
    way = f"source {decision.source} at {decision.provider}"
    provider = policy.providers.get(decision.provider)
    if provider is not None:
        strict = decision.orders.strict or path.state in ("cold", "warming")
        out.append((way, str(provider.cold_rate if strict else provider.rate)))
    if path.cap_day is not None:
        out.append((f"warmup of {way}", f"{path.cap_day}/day"))
    if path.cap_hour is not None:
        out.append((f"warmup of {way}", f"{path.cap_hour}/h"))
    source = policy.sources.get(decision.source)
    if source is not None and source.quota is not None:
        out.append((f"quota of {decision.source}", str(source.quota)))
    return out
