"""The decision record: what was decided, from which inputs, and who lost for which reason.

Compact: losing candidates are grouped by reason, and only those that were asked before the winner are
named; :func:`router.policy.explain.explain` expands a record to every candidate.
"""

from __future__ import annotations

from typing import Any

from mailweir.contracts.job import Job
from mailweir.contracts.route import Decision, Held, Refused, Rejected, Routed
from router.policy.context import Context


def group(rejected: tuple[Rejected, ...]) -> dict[str, list[str]]:
    """reason -> ["pool/source", ...], in the order they were asked."""
    out: dict[str, list[str]] = {}
    for loser in rejected:
        out.setdefault(loser.why, []).append(f"{loser.pool}/{loser.source}")
    return out


def record(decision: Decision, context: Context, job: Job) -> dict[str, Any]:
    """The body of a ``decisions`` row (JSON): inputs' versions, choice, reasons, losers.

    Holds no address: a decision never depends on more of it than its domain, provider and hash.
    """
    body: dict[str, Any] = {
        "at": context.now,
        "snapshot": f"{context.snapshot.version}.{context.fast.version}",
        "policy": context.policy.policy.version,
    }
    body.update(_inputs(context, job))
    match decision:
        case Routed():
            body.update(
                outcome="routed",
                queue=decision.queue,
                pool=decision.pool,
                source=decision.source,
                provider=decision.provider,
                rule=decision.orders.rule,
                score=round(decision.score, 4),
                precedence=decision.precedence,
                reasons=list(decision.reasons),
            )
            if decision.orders.arm:
                body["arm"] = decision.orders.arm
            if decision.rejected:
                body["lost"] = group(decision.rejected)
        case Held():
            body.update(outcome="held", until=decision.until, reason=decision.reason)
            if decision.rule:
                body["rule"] = decision.rule
            if decision.rejected:
                body["lost"] = group(decision.rejected)
        case Refused():
            outcome = "expired" if decision.reason == "expired" else "refused"
            body.update(outcome=outcome, reason=decision.reason, detail=decision.detail)
            if room := context.recipients.get(job.id):
                body["held"] = room.held
            if decision.rule:
                body["rule"] = decision.rule
    return body


def _inputs(context: Context, job: Job) -> dict[str, Any]:
    """What a replay needs beside the row: the job where it was not fresh, what was known of its MX."""
    then: dict[str, Any] = {}
    if job.attempts:
        then["attempts"] = job.attempts
    if job.state != "accepted":
        then["state"] = job.state
    if job.reason and job.state in ("due", "held"):
        then["reason"] = job.reason  # why it came back unsent: our own words, no remote's
    if job.stay_with:
        then["stay"] = job.stay_with
    out: dict[str, Any] = {"job": then} if then else {}
    if provider := context.providers.get(job.domain):
        out["mx"] = provider
    if zone := context.zones.get(job.domain):
        out["zone"] = zone
    return out
