"""What a policy must hold to be decided by at all: references, catch-all, failover, isolation."""

from __future__ import annotations

from collections.abc import Iterable

from mailweir.contracts.policy import Policy, Rule
from router.policy import isolation
from router.policy.compiled import RELAY_KINDS
from router.policy.kinds import Path, Reader
from router.policy.values import unknown


def check(policy: Policy, reader: Reader) -> None:
    """Report everything that makes the policy invalid."""
    _names(policy, reader)
    _sources(policy, reader)
    _cycles(policy, reader)
    if not reader.problems:  # they would only repeat what a wrong name or circle leads to
        _catch_all(policy, reader)
        _mixing(policy, reader)


def _names(policy: Policy, reader: Reader) -> None:
    """Every name that is used is defined."""
    pools, sources, regions = policy.pools, policy.sources, policy.regions

    def each(what: str, names: Iterable[str], path: Path, known: Iterable[str]) -> None:
        for i, name in enumerate(names):
            here: Path = (*path, name)
            unknown(reader, here if here in reader.lines else (*path, i), what, name, known)

    for name, pool in pools.items():
        at: Path = ("pools", name)
        each("source", (m.source for m in pool.members), (*at, "sources"), sources)
        each("pool", pool.failover, (*at, "failover"), pools)
        each("source", pool.relays, (*at, "relays"), sources)
        each("provider", pool.limits, (*at, "limits"), policy.providers)
        if pool.region and regions:
            unknown(reader, (*at, "region"), "region", pool.region, regions)
        for i, relay in enumerate(pool.relays):
            if relay in sources and sources[relay].kind not in RELAY_KINDS:
                here = (*at, "relays", i)
                right = "a source of kind relay, ses, sendgrid or mailgun"
                reader.say(here, here, f"{relay!r} is no relay", right)
    for name, source in sources.items():
        if source.region and regions:
            unknown(reader, ("sources", name, "region"), "region", source.region, regions)
    for i, rule in enumerate(_by_line(policy, reader)):
        at = ("rules", i, "action")
        key = "pools" if (*at, "pools") in reader.lines else "pool"
        each("pool", (s.pool for s in rule.action.pools), (*at, key), pools)
        if rule.action.split:
            unknown(reader, (*at, "split"), "split", rule.action.split, policy.splits)
        if rule.action.region:
            unknown(reader, (*at, "region"), "region", rule.action.region, _all_regions(policy))
    for name, bucket in policy.buckets.items():
        key = "pools" if ("buckets", name, "pools") in reader.lines else "pool"
        each("pool", (s.pool for s in bucket.pools), ("buckets", name, key), pools)
    for i, affinity in enumerate(policy.affinity):
        domain = affinity.sending_domain or ""
        at = ("domains", domain) if ("domains", domain, "pool") in reader.lines else ("affinity", i)
        unknown(reader, (*at, "pool"), "pool", affinity.pool, pools)
        each("pool", affinity.failover, (*at, "failover"), pools)
        if not (affinity.sending_domain or affinity.tenant or affinity.api_key):
            reader.say(
                at, at, "nothing says whose jobs it is for", "sending_domain, tenant or api_key"
            )
    for name, arms in policy.splits.items():
        for i, arm in enumerate(arms):
            at = ("splits", name, "arms", i)
            if not unknown(reader, (*at, "pool"), "pool", arm.pool, pools) and arm.source:
                pool = pools[arm.pool]
                inside = {m.source for m in pool.members} | set(pool.relays)
                unknown(reader, (*at, "source"), f"source in pool {arm.pool}:", arm.source, inside)
    for zone, weights in policy.geo.items():
        each("region", weights, ("geo", zone), _all_regions(policy))
    for tag, names in policy.residency.items():
        each("region", names, ("residency", tag), _all_regions(policy))


def _all_regions(policy: Policy) -> set[str]:
    """Declared regions, else those sources and pools name."""
    if policy.regions:
        return set(policy.regions)
    named = {s.region for s in policy.sources.values()} | {p.region for p in policy.pools.values()}
    return {region for region in named if region}


def _by_line(policy: Policy, reader: Reader) -> list[Rule]:
    """Rules in the order of the file (the policy has them by number)."""
    return sorted(policy.rules, key=lambda rule: rule.line)


def _sources(policy: Policy, reader: Reader) -> None:
    """What a source needs for its kind, and why it is shared."""
    for name, source in policy.sources.items():
        at: Path = ("sources", name)
        if source.kind == "relay" and not source.host:
            reader.say(at, (*at, "host"), "a relay needs a host", "host: smtp.example.com")
        if source.kind in RELAY_KINDS and source.kind != "relay" and source.auth is None:
            right = "auth: {username: ..., secret: env:NAME}"
            reader.say(at, (*at, "auth"), f"kind {source.kind} needs credentials", right)
        if source.kind in RELAY_KINDS and source.ip:
            right = "leave ip out, or make it kind: mx"
            reader.say((*at, "ip"), (*at, "ip"), f"kind {source.kind} has no own address", right)
        if source.kind == "mx" and source.host:
            right = "kind: relay, or leave host out"
            reader.say((*at, "host"), (*at, "host"), "kind mx finds hosts by MX", right)
        if source.shared and not source.shared_reason:
            right = "shared_reason: why transactional and marketing mail share it"
            reader.say((*at, "shared"), (*at, "shared"), "it is shared without a reason", right)
        if isolation.is_mixed(frozenset(source.buckets)) and not source.shared:
            here: Path = (*at, "buckets")
            reader.say(here, here, "it mixes transactional with other mail", _UNMIX)
    for name, pool in policy.pools.items():
        if not pool.members:
            here = ("pools", name, "sources")
            reader.say(here, here, "the pool has no source", "at least one")


_UNMIX = "one source for each kind, or shared: true with a shared_reason"


def _catch_all(policy: Policy, reader: Reader) -> None:
    """Every bucket must be caught by a rule without further conditions (S12)."""
    left = isolation.ALL
    for rule in policy.rules:
        if isolation.takes_all(rule.match):
            left = left - isolation.buckets_of(rule.match)
    if left:
        missing = ", ".join(sorted(left))
        right = "add a last rule without match: - {name: catch-all, action: {pool: ...}}"
        reader.say(("rules",), ("rules",), f"no rule catches every job of {missing}", right)


def _cycles(policy: Policy, reader: Reader) -> None:
    """Failover orders that lead back to their beginning."""
    reported: set[frozenset[str]] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            circle = way[way.index(name) :]
            if frozenset(circle) not in reported:
                reported.add(frozenset(circle))
                at: Path = ("pools", circle[-1], "failover")
                chain = " -> ".join((*circle, name))
                reader.say(at, at, f"failover goes in a circle: {chain}", "a chain that ends")
            return
        if name in policy.pools:
            for target in policy.pools[name].failover:
                walk(target, (*way, name))

    for name in policy.pools:
        if not any(name in circle for circle in reported):
            walk(name, ())


def _mixing(policy: Policy, reader: Reader) -> None:
    """Isolation (S14): sources that transactional and other mail would share."""
    used = isolation.claims(policy)
    reach = isolation.reach(policy)
    for name, source in policy.sources.items():
        if source.shared or not isolation.is_mixed(used[name]) or source.buckets:
            continue
        ways = [
            f"pool {pool.name} ({', '.join(sorted(reach[pool.name]))})"
            for pool in policy.pools.values()
            if name in {m.source for m in pool.members} | set(pool.relays)
        ]
        at: Path = ("sources", name)
        message = f"it would serve transactional and other mail, through {' and '.join(ways)}"
        right = f"a rule or pool for each kind (bucket:, buckets:), {_UNMIX}"
        reader.say(at, at, message, right)
