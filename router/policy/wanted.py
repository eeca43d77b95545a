"""Which pools a job asks for: header route > affinity > rules > bucket default (S17).

What forbids (isolation, residency, limits, hold, refuse) is not decided here and binds whatever
chose the pool. A wish that isolation forbids, or that names nothing we have, is left aside and said so.
"""

from __future__ import annotations

from typing import NamedTuple

from mailweir.contracts.job import Job
from mailweir.contracts.policy import Rule, Share
from router.policy.compiled import CompiledPolicy
from router.policy.rules import Facts, sending_domain_of


class Wanted(NamedTuple):
    """The level that chose, what it chose between, and what was set aside on the way."""

    level: str  # header | affinity | rule | default
    shares: tuple[Share, ...]
    key: str  # names the set of shares: its turns are counted together
    chain: tuple[str, ...] | None  # a failover order of its own; None: the pool's
    source: str  # a source or relay asked for by name; "" for none
    arm: str  # name of the A/B split, or ""
    notes: tuple[str, ...]


class Asked(NamedTuple):
    """What header or affinity ask for, before rules are looked at (rules may match on it)."""

    level: str  # header | affinity | ""
    pool: str
    source: str
    chain: tuple[str, ...] | None
    notes: tuple[str, ...]


def asked(job: Job, policy: CompiledPolicy) -> Asked:
    """The header route if the job may have one, else the affinity, else nothing."""
    notes: tuple[str, ...] = ()
    wishes = job.meta.wishes
    if wishes.pool or wishes.route:
        found, notes = _by_header(job, policy)
        if found is not None:
            return found
    affinity = policy.affinity(
        job.meta.api_key or "", sending_domain_of(job), job.tenant.lower(), job.bucket
    )
    if affinity is None:
        return Asked("", "", "", None, notes)
    if not policy.pool_serves(affinity.pool, job.bucket):
        note = f"affinity pool {affinity.pool} set aside: its sources do not serve {job.bucket}"
        return Asked("", "", "", None, (*notes, note))
    chain = policy.chain_of(affinity.pool, affinity.failover) if affinity.failover else None
    return Asked("affinity", affinity.pool, "", chain, notes)


def _by_header(job: Job, policy: CompiledPolicy) -> tuple[Asked | None, tuple[str, ...]]:
    may = policy.may_ask
    if not ("*" in may or job.tenant in may or (job.meta.api_key or "") in may):
        return None, ("header route set aside: this key and tenant may not ask for one",)
    wishes = job.meta.wishes
    pool, source = wishes.pool or "", wishes.route or ""
    if source and not pool:
        pool = next(
            (
                p.name
                for p in policy.pools.values()
                if source in {s.name for s, _ in p.members} | {s.name for s in p.relays}
                and policy.pool_serves(p.name, job.bucket)
            ),
            "",
        )
        if not pool:
            return None, (f"header route set aside: no pool for {job.bucket} has that source",)
    if pool not in policy.pools:
        return None, ("header route set aside: there is no such pool",)
    if not policy.pool_serves(pool, job.bucket):
        return None, (f"header route set aside: sources of pool {pool} do not serve {job.bucket}",)
    return Asked("header", pool, source, None, ()), ()


def wanted(ask: Asked, rule: Rule | None, facts: Facts, policy: CompiledPolicy) -> Wanted:
    """The shares the job's pool is drawn from."""
    notes = ask.notes
    if ask.level:
        return Wanted(ask.level, (Share(ask.pool, 100),), "", ask.chain, ask.source, "", notes)
    if rule is not None:
        action = rule.action
        if action.pools:
            return Wanted("rule", action.pools, f"rule:{rule.name}", None, "", "", notes)
        if action.split:
            arms = policy.policy.splits.get(action.split, ())
            if arms:
                return Wanted("rule", arms, f"split:{action.split}", None, "", action.split, notes)
    bucket = str(facts.job.bucket)
    return Wanted("default", policy.default_shares(bucket), f"bucket:{bucket}", None, "", "", notes)


def weight_at(share: Share, now: float) -> int:
    """A share's weight now; a gradual shift moves it in a straight line, in whole steps."""
    if share.to is None or now <= share.shift_start:
        return share.weight
    if share.shift_seconds <= 0 or now >= share.shift_start + share.shift_seconds:
        return share.to
    done = (now - share.shift_start) / share.shift_seconds
    return round(share.weight + (share.to - share.weight) * done)
