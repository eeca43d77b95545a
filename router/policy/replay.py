"""A recorded decision made again: with the policy and snapshot of then, and what the record says of the
paths at that moment. It expands to every candidate, and to itself.

What was true for an instant only (breakers, tokens, shares in turn) is not stored apart: the record's
losers tell it. Rule, pools, order, constraints and queue are worked out anew, so that a record that was
altered, or a policy that is not the one of then, does not expand to itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from mailweir.contracts.job import Job
from mailweir.contracts.route import Decision
from mailweir.contracts.snapshot import FastState, Snapshot
from router.policy.compiled import CompiledPolicy
from router.policy.context import Context, RecipientRoom, RouterState
from router.policy.decide import MAX_HELD_PER_RECIPIENT, ZONE_UNKNOWN, decide
from router.policy.draft import Draft
from router.policy.explain import described
from router.policy.record import record
from router.policy.search import LAST_RESORT, STAYS, Trace
from router.policy.shares import MAX_ARMS
from router.policy.told import Told

SAME = ("outcome", "queue", "pool", "source", "rule", "precedence", "reasons", "reason", "lost")
"""What must come out again."""


class Replay(NamedTuple):
    """``explanation`` as of ``explain``; ``same``: the decision is the recorded one."""

    explanation: dict[str, Any]
    decision: Decision
    same: bool


def job_then(job: Job, body: Mapping[str, Any]) -> Job:
    """The job as it stood when it was decided. Its recipient and meta do not change, unless erased."""
    then = body.get("job", {})
    return msgspec.structs.replace(
        job,
        attempts=int(then.get("attempts", 0)),
        state=str(then.get("state", "accepted")),
        stay_with=then.get("stay"),
        reason=then.get("reason"),
    )


def context_then(
    job: Job, body: Mapping[str, Any], policy: CompiledPolicy, snapshot: Snapshot
) -> Context:
    """The world of a decision, but for its paths at that moment."""
    domain, reason = job.domain, body.get("reason")
    refused = body.get("outcome") == "refused"
    rooms: dict[int, RecipientRoom] = {}
    if refused and reason == "recipient_limit":
        rooms = {job.id: RecipientRoom(body["at"], max(body["held"], MAX_HELD_PER_RECIPIENT))}
    elif body.get("outcome") == "held" and str(reason).startswith("recipient limit"):
        rooms = {job.id: RecipientRoom(body["until"], 0)}
    return Context(
        policy=policy,
        snapshot=snapshot,
        fast=FastState(int(str(body["snapshot"]).partition(".")[2] or 0), {}),
        now=body["at"],
        suppressed={job.id: body["detail"]} if refused and reason == "suppressed" else {},
        providers={domain: body["mx"]} if body.get("mx") else {},
        zones={domain: body["zone"]} if body.get("zone") else {},
        unplaced=frozenset({domain} if ZONE_UNKNOWN in str(reason) else ()),
        recipients=rooms,
        paused=snapshot.paused,
    )


def replay(body: Mapping[str, Any], job: Job, policy: CompiledPolicy, snapshot: Snapshot) -> Replay:
    """Make the recorded decision ``body`` about ``job`` again. The drawn arm of a weighted choice is the
    one that brings the record about; where none does, the first stands and ``same`` is False."""
    job = job_then(job, body)
    context = context_then(job, body, policy, snapshot)
    first: Replay | None = None
    for arm in range(MAX_ARMS):
        told = _told(body, arm)
        draft, trace = Draft(context, RouterState(), told), Trace()
        decision = decide(job, draft, trace)
        again = record(decide(job, Draft(context, RouterState(), told)), context, job)
        made = Replay(
            described(job, decision, trace, context),
            decision,
            all(again.get(name) == body.get(name) for name in SAME),
        )
        if made.same:
            return made
        first = first or made
        if arm + 1 >= told.arms:
            break
    assert first is not None
    return first


def _told(body: Mapping[str, Any], arm: int) -> Told:
    losers: dict[tuple[str, str], str | None] = {}
    for why, names in body.get("lost", {}).items():
        for name in names:
            pool, _, source = name.rpartition("/")
            # the last resort is found anew, by the score; it may be the winner
            losers[pool, source] = None if why.startswith(LAST_RESORT) else why
    if body.get("outcome") == "routed":
        losers.setdefault((body["pool"], body["source"]), None)
    until = body["until"] if body.get("outcome") == "held" else None
    return Told(losers, until, arm, str(body.get("reason")).startswith(STAYS))
