"""The decision: ``route(job, context, state) -> (Routed | Held | Refused, state')``, pure.

Order of things: what ends a job (expired, suppressed, refused by rule, recipient limit), what makes it
wait whatever its way (pauses, windows), which pools it asks for, and in them the first source that may
take it: the drawn pool, its failover order, its siblings by weight, its fallback relays.
"""

from __future__ import annotations

from collections.abc import Sequence

from mailweir.contracts.job import Job
from mailweir.contracts.policy import Rule
from mailweir.contracts.route import Decision, Held, Refused
from router.policy.context import Context, RouterState
from router.policy.draft import Draft
from router.policy.rules import Facts, sending_domain_of
from router.policy.search import Search, Trace
from router.policy.waiting import RECHECK, held
from router.policy.wanted import Asked, asked, wanted
from router.policy.windows import is_open, next_opening

MAX_HELD_PER_RECIPIENT = 20  # S21
ZONE_UNKNOWN = "the geo zone of the MX, which is not known yet"
ZONE_WAIT = 1.0  # seconds until a job whose zone is being found out is looked at again


def route(job: Job, context: Context, state: RouterState) -> tuple[Decision, RouterState]:
    """Decide one job. Equal arguments give equal results."""
    draft = Draft(context, state)
    decision = decide(job, draft)
    return decision, draft.close()


def route_many(
    jobs: Sequence[Job], context: Context, state: RouterState
) -> tuple[list[Decision], RouterState]:
    """Decide a batch: the same as :func:`route` one after the other, with the state copied once."""
    draft = Draft(context, state)
    decisions = [decide(job, draft) for job in jobs]
    return decisions, draft.close()


def facts_of(job: Job, context: Context, ask: Asked) -> Facts:
    """What rules may look at. Where neither the MX nor the lane names a provider, the domain does."""
    domain = job.domain
    provider = context.providers.get(domain)
    if provider is None:
        provider = domain if job.lane.startswith("~") or not job.lane else job.lane
    return Facts(
        job,
        domain,
        provider,
        sending_domain_of(job),
        ask.pool,
        context.zones.get(domain, ""),
        context.now,
    )


def decide(job: Job, draft: Draft, trace: Trace | None = None) -> Decision:
    """One decision inside a batch. With a ``trace`` every candidate of the pools in play is looked
    at and noted there (explain); the decision is the same."""
    context = draft.context
    if ended := _ended(job, context):
        return ended
    ask = asked(job, context.policy)
    facts = facts_of(job, context, ask)
    rules = context.policy.rules
    rule = rules.first(facts)
    if facts.domain in context.unplaced and (other := rules.waits_for_zone(facts, rule)):
        why = f"rule {other.name!r} asks for {ZONE_UNKNOWN}"
        return held(job, context.now, context.now + ZONE_WAIT, why, rule=other.name)
    if stopped := _stopped(job, facts, rule, draft):
        return stopped
    wish = wanted(ask, rule, facts, context.policy)
    return Search(draft, facts, rule, wish, trace).run()


def _ended(job: Job, context: Context) -> Refused | None:
    """What ends a job before its way matters."""
    now = context.now
    if job.expires_at is not None and job.expires_at <= now:
        return Refused("expired", "its own expiry time has passed")
    retry = context.policy.policy.bucket(job.bucket).retry
    since = job.meta.send_at if job.meta.send_at is not None else job.accepted_at
    if now - since >= retry.max_age:
        return Refused(
            "expired", f"older than {retry.max_age / 3600:g} h, the limit of {job.bucket}"
        )
    if retry.max_retries is not None and job.attempts > retry.max_retries:
        return Refused(
            "expired", f"{retry.max_retries} retries are used, the limit of {job.bucket}"
        )
    why = context.suppressed.get(job.id)
    if why is not None:
        return Refused("suppressed", why)
    return None


def _stopped(job: Job, facts: Facts, rule: Rule | None, draft: Draft) -> Held | Refused | None:
    """What refuses or holds a job whatever its way: rule, pauses, recipient limit."""
    now = facts.now
    name = rule.name if rule is not None else ""
    if rule is not None:
        action = rule.action
        if action.refuse is not None:
            return Refused("policy", action.refuse, name)
        if action.hold is not None:
            return held(job, now, now + RECHECK, f"rule {name!r} holds: {action.hold}", rule=name)
        if action.sign and not _has_key(facts.sending_domain, draft):
            why = f"rule {name!r} requires a signature and {facts.sending_domain} has no DKIM key"
            return held(job, now, now + RECHECK, why, rule=name)
        if action.hold_until is not None and not is_open(action.hold_until, now):
            opening = next_opening(action.hold_until, now)
            return held(job, now, opening, f"rule {name!r} waits for its window", rule=name)
    if draft.paused:
        for subject in (
            f"bucket:{job.bucket}",
            f"tenant:{job.tenant}",
            f"provider:{facts.provider}",
        ):
            until = draft.paused.get(subject, 0.0)
            if until > now:
                return held(job, now, min(until, now + RECHECK), f"{subject} is paused", rule=name)
    room = draft.context.recipients.get(job.id)
    if room is not None:
        if room.held >= MAX_HELD_PER_RECIPIENT and job.state != "held":
            return Refused(
                "recipient_limit", f"{room.held} jobs already wait for this recipient", name
            )
        return held(job, now, room.room_at, "recipient limit: room later", rule=name)
    return None


def _has_key(domain: str, draft: Draft) -> bool:
    """Whether the sending domain, or a parent of it, has a DKIM key in the policy."""
    domains = draft.context.policy.policy.domains
    while domain:
        if domain in domains and domains[domain].dkim:
            return True
        domain = domain.partition(".")[2]
    return False
