"""What works and is probably not meant: warnings about a valid policy."""

from __future__ import annotations

from mailweir.contracts.policy import Match, Policy
from router.policy import isolation
from router.policy.kinds import Path, Reader
from router.policy.patterns import alternatives, domains, test_of

MANY_SOURCES = 20  # S14: pools are built and measured for up to 20 sources


def lint(policy: Policy, reader: Reader) -> None:
    """Report warnings; residency leaks are errors."""
    _unreachable(policy, reader)
    _pools(policy, reader)
    _residency(policy, reader)
    _signing(policy, reader)
    _retries(policy, reader)
    _affinity(policy, reader)


def _unreachable(policy: Policy, reader: Reader) -> None:
    """Rules that an earlier rule leaves nothing to."""
    places = {rule.number: i for i, rule in enumerate(sorted(policy.rules, key=lambda r: r.line))}
    for i, (rule, here) in enumerate(isolation.arrivals(policy)):
        at: Path = ("rules", places[rule.number])
        if not here:
            message = f"rule {rule.name!r} is never reached: rules before it take all its jobs"
            reader.warn(at, at, message, "give it a lower number")
            continue
        for earlier in policy.rules[:i]:
            if covers(earlier.match, rule.match):
                message = f"rule {rule.name!r} is never reached: {earlier.name!r} (line "
                message += f"{earlier.line}) takes all its jobs"
                reader.warn(at, at, message, "give it a lower number")
                break


def covers(wide: Match, narrow: Match) -> bool:
    """Whether every job ``narrow`` matches is also matched by ``wide``, as far as that is plain: each
    condition of ``wide`` is in ``narrow`` too, with patterns that ``wide``'s match."""
    for name in Match.__struct_fields__:
        outer, inner = getattr(wide, name), getattr(narrow, name)
        if not outer or outer == inner:
            continue
        if not inner or name in ("window", "header"):
            return False
        split = domains if name in ("recipient_domain", "sending_domain") else alternatives
        matches = test_of(split(outer))
        # a glob of ``narrow`` taken as text is matched by ``wide`` only if wide's glob covers it
        if not all(matches(pattern) for pattern in split(inner)):
            return False
    return True


def _pools(policy: Policy, reader: Reader) -> None:
    reach = isolation.reach(policy)
    used = {p for rule in policy.rules for p in isolation.pools_of(policy, rule.action)}
    for name, pool in policy.pools.items():
        at: Path = ("pools", name)
        sources = [policy.sources[m.source] for m in pool.members]
        if not any(source.warm for source in sources):
            right = "one source with warm: true, or a fallback to a warm pool"
            reader.warn(at, at, "none of its sources is warm: everything waits for warmup", right)
        if len(sources) > MANY_SOURCES:
            right = f"up to {MANY_SOURCES}; split the pool"
            reader.warn(at, at, f"it has {len(sources)} sources", right)
        if not reach[name] and name not in used:
            right = "a rule, or buckets: [...] if header routing uses it"
            reader.warn(at, at, "nothing leads to it", right)
        served = isolation.serves(policy)
        for bucket in sorted(reach[name]):
            if not any(bucket in served[s.name] for s in sources):
                message = f"{bucket} jobs can reach it and none of its sources serves {bucket}"
                reader.warn(at, at, message, "they are held until another pool takes them")


def _residency(policy: Policy, reader: Reader) -> None:
    """A residency nobody can fulfil holds its jobs for ever; a rule that pins elsewhere, too."""
    for tag, regions in policy.residency.items():
        at: Path = ("residency", tag)
        if not regions:
            reader.say(at, at, "it allows no region", "at least one region")
            continue
        allowed = [
            name
            for name, pool in policy.pools.items()
            for m in pool.members
            if (policy.sources[m.source].region or pool.region) in regions
        ]
        if not allowed:
            right = f"a source with region: {regions[0]}"
            reader.say(
                at, at, "no source sends from its regions: its jobs would wait for ever", right
            )
            continue
        for name, pool in policy.pools.items():
            inside = name in allowed
            for i, target in enumerate(pool.failover):
                if inside and target not in allowed:
                    here: Path = ("pools", name, "failover", i)
                    message = f"residency leak: pool {target} has no source in {', '.join(regions)}"
                    right = f"jobs with residency {tag} are held rather than sent there"
                    reader.warn(here, here, message, right)


def _signing(policy: Policy, reader: Reader) -> None:
    """Signatures that are required without a key that could make them."""
    keyed = {name for name, domain in policy.domains.items() if domain.dkim}
    for i, rule in enumerate(sorted(policy.rules, key=lambda r: r.line)):
        if not rule.action.sign:
            continue
        at: Path = ("rules", i, "action", "sign")
        wanted = domains(rule.match.sending_domain)
        missing = [d for d in wanted if d not in keyed]
        if not keyed or missing:
            which = f" for {', '.join(missing)}" if missing else ""
            right = "domains: {example.com: {dkim: [{selector: s1, secret: file:/...}]}}"
            reader.warn(at, at, f"missing DKIM: no key{which}; its jobs are held", right)
    for name, domain in policy.domains.items():
        if not domain.dkim:
            here: Path = ("domains", name)
            right = "dkim: [{selector: s1, secret: file:/...}]"
            reader.warn(here, here, "no DKIM key: its mail goes out unsigned", right)


def implied(schedule: tuple[float, ...], retries: int) -> float:
    """Seconds after the first attempt at which the last of so many retries is made (no jitter)."""
    waits = [schedule[min(i, len(schedule) - 1)] for i in range(retries)]
    return sum(waits)


def _retries(policy: Policy, reader: Reader) -> None:
    for name, bucket in policy.buckets.items():
        retry = bucket.retry
        if retry.max_retries is None:
            continue
        minutes = implied(retry.schedule, retry.max_retries) / 60.0
        at: Path = ("buckets", name, "retry", "max_retries")
        if minutes * 60.0 < retry.max_age:
            used = "1 retry is" if retry.max_retries == 1 else f"{retry.max_retries} retries are"
            message = f"{used} used after {minutes:g} minutes"
            right = f"leave it out: age decides ({retry.max_age / 3600:g} h)"
            reader.warn(at, at, message, right)


def _affinity(policy: Policy, reader: Reader) -> None:
    served = isolation.reach(policy)
    for i, affinity in enumerate(policy.affinity):
        lost = sorted(isolation.ALL - served.get(affinity.pool, frozenset()))
        if lost and not affinity.buckets and served.get(affinity.pool):
            domain = affinity.sending_domain or ""
            own = ("domains", domain, "pool") in reader.lines
            at: Path = ("domains", domain) if own else ("affinity", i)
            message = (
                f"pool {affinity.pool} does not serve {', '.join(lost)}: those follow the rules"
            )
            reader.warn(at, at, message, "buckets: [...] says that it is meant")
