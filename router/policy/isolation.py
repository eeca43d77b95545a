"""Isolation (S14): a source serves transactional, or marketing and bulk, never both - unless the policy
says ``shared: true`` with a reason.

Which buckets can reach a pool follows from the whole policy: its own ``buckets``, the rules that send to
it, bucket defaults, affinities, and failover from pools that are reached.
"""

from __future__ import annotations

from mailweir.contracts.job import Bucket
from mailweir.contracts.policy import CATCH_ALL_POOL, Action, Match, Policy, Rule
from router.policy.patterns import alternatives, test_of

ALL = frozenset(str(b.value) for b in Bucket)
TRANSACTIONAL = frozenset({str(Bucket.TRANSACTIONAL.value)})
PROMOTIONAL = ALL - TRANSACTIONAL


def buckets_of(match: Match) -> frozenset[str]:
    """The buckets a match can be true for."""
    if not match.bucket:
        return ALL
    test = test_of(alternatives(match.bucket))
    return frozenset(b for b in ALL if test(b))


def is_mixed(buckets: frozenset[str]) -> bool:
    """Whether a set of buckets holds transactional and other mail."""
    return bool(buckets & TRANSACTIONAL) and bool(buckets & PROMOTIONAL)


def takes_all(match: Match) -> bool:
    """Whether the match holds for every job of its buckets."""
    return match == Match(bucket=match.bucket)


def pools_of(policy: Policy, action: Action) -> tuple[str, ...]:
    """The pools a rule's action names, directly or by its A/B split."""
    shares = action.pools or policy.splits.get(action.split or "", ())
    return tuple(share.pool for share in shares)


def arrivals(policy: Policy) -> list[tuple[Rule, frozenset[str]]]:
    """Every rule with the buckets that can still reach it: rules before it take theirs away."""
    left = ALL
    out = []
    for rule in sorted(policy.rules, key=lambda r: r.number):
        here = buckets_of(rule.match) & left
        out.append((rule, here))
        if takes_all(rule.match):
            left = left - here
    return out


def reach(policy: Policy) -> dict[str, frozenset[str]]:
    """Pool -> buckets whose jobs can be sent to it, failover included."""
    direct: dict[str, frozenset[str]] = dict.fromkeys(policy.pools, frozenset())

    def add(pool: str, buckets: frozenset[str]) -> None:
        if pool in direct:
            direct[pool] = direct[pool] | buckets

    unnamed = frozenset[str]() if policy.rules else ALL
    for rule, here in arrivals(policy):
        pools = pools_of(policy, rule.action)
        for pool in pools:
            add(pool, here)
        if not pools and rule.action.hold is None and rule.action.refuse is None:
            unnamed = unnamed | here
    for bucket in unnamed:
        shares = policy.bucket(bucket).pools
        names = [s.pool for s in shares] or [
            n for n in (bucket, CATCH_ALL_POOL) if n in policy.pools
        ][:1]
        for name in names:
            add(name, frozenset({bucket}))
    for affinity in policy.affinity:
        # an affinity asks; where its pool is already bound to a kind of mail, it changes nothing
        wanted = frozenset(affinity.buckets) or direct.get(affinity.pool) or ALL
        for pool in (affinity.pool, *affinity.failover):
            add(pool, wanted)
    for name, pool_ in policy.pools.items():
        if pool_.buckets:
            direct[name] = frozenset(pool_.buckets)
    return _with_failover(policy, direct)


def _with_failover(policy: Policy, direct: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Add what failover brings, except to pools that state their buckets themselves."""
    changed = True
    while changed:
        changed = False
        for name, pool in policy.pools.items():
            for target in pool.failover:
                if target not in direct or policy.pools[target].buckets:
                    continue
                union = direct[target] | direct[name]
                if union != direct[target]:
                    direct[target] = union
                    changed = True
    return direct


def claims(policy: Policy) -> dict[str, frozenset[str]]:
    """Source -> buckets the policy would send through it, before isolation is applied."""
    by_pool = reach(policy)
    out: dict[str, frozenset[str]] = dict.fromkeys(policy.sources, frozenset())
    for name, pool in policy.pools.items():
        for source in (*(m.source for m in pool.members), *pool.relays):
            if source in out:
                out[source] = out[source] | by_pool[name]
    for name, source_ in policy.sources.items():
        if source_.buckets:
            out[name] = frozenset(source_.buckets)
    return out


def serves(policy: Policy) -> dict[str, frozenset[str]]:
    """Source -> buckets it may take: what every decision obeys.

    A source whose uses mix both kinds without ``shared`` (lint refuses such a policy; one built by
    hand may have it) keeps transactional only: marketing through it is what does the damage. A source
    that nothing leads to serves nothing; a pool for header routing only states its ``buckets``.
    """
    out = {}
    for name, buckets in claims(policy).items():
        source = policy.sources[name]
        if source.shared:
            out[name] = frozenset(source.buckets) or ALL
        elif is_mixed(buckets):
            out[name] = TRANSACTIONAL
        else:
            out[name] = buckets
    return out
