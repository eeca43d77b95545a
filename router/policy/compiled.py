"""A policy made ready for deciding: indexes, failover orders, what each source may serve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from mailweir.contracts.job import Bucket
from mailweir.contracts.policy import CATCH_ALL_POOL, Affinity, Policy, Pool, Share, Source
from mailweir.contracts.snapshot import OTHER, PathState, Snapshot
from router.policy.hashing import seed_of
from router.policy.isolation import serves
from router.policy.rules import RuleIndex


def in_region(policy: Policy, own: str | None) -> Policy:
    """The policy as processes of region ``own`` read it. Without one queues have no regions either; with
    one a policy that lists none has the own region, then those its sources and pools name."""
    if own is None:
        return msgspec.structs.replace(policy, regions=()) if policy.regions else policy
    if policy.regions:
        return policy
    named = {s.region for s in policy.sources.values()} | {p.region for p in policy.pools.values()}
    others = sorted(region for region in named if region and region != own)
    return msgspec.structs.replace(policy, regions=(own, *others))


RELAY_KINDS = frozenset({"relay", "ses", "sendgrid", "mailgun"})
BUCKETS: tuple[str, ...] = tuple(str(b.value) for b in Bucket)


@dataclass(frozen=True, slots=True, eq=False)
class CompiledSource:
    """A source with what decisions ask of it."""

    name: str
    source: Source
    own: bool  # an own IP: shares the fate of our other IPs at a provider
    region: str
    buckets: frozenset[str]
    seed: int  # its place in rendezvous hashing


@dataclass(frozen=True, slots=True, eq=False)
class CompiledPool:
    """A pool with its sources and its whole failover order."""

    name: str
    pool: Pool
    members: tuple[tuple[CompiledSource, float], ...]
    relays: tuple[CompiledSource, ...]
    chain: tuple[str, ...]  # pools to try after this one, each once


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A source inside a pool, as the snapshot sees it toward one provider in one bucket."""

    source: CompiledSource
    pool: str
    region: str
    base: float  # the policy's weight
    weight: float  # base x snapshot weight x score^2
    path: PathState
    name: str
    node: tuple[int, float]  # seed, 1 / weight: its place in rendezvous hashing


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The candidates of a pool toward a provider in a bucket, best known before any job is seen."""

    candidates: tuple[Candidate, ...]
    nodes: tuple[tuple[int, float], ...]
    total: float  # sum of weights
    barred: tuple[str, ...]  # sources whose isolation forbids the bucket


class CompiledPolicy:
    """Read-only. Views are a memory of pure results for the snapshot last asked about."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.rules = RuleIndex(policy.rules)
        allowed = serves(policy)
        self.sources = {
            name: CompiledSource(
                name,
                source,
                source.kind not in RELAY_KINDS,
                source.region or "",
                allowed[name],
                seed_of(name),
            )
            for name, source in policy.sources.items()
        }
        self.pools = {name: self._pool(pool) for name, pool in policy.pools.items()}
        self.by_key, self.by_domain, self.by_tenant = (
            _affinities(policy.affinity, field) for field in ("api_key", "sending_domain", "tenant")
        )
        self.may_ask = frozenset(policy.header_routing)
        self.priorities = {
            rule.name: rule.action.priority
            for rule in policy.rules
            if rule.action.priority is not None
        }
        self.rivals = self._rivals()
        self._default = {bucket: self._default_shares(bucket) for bucket in BUCKETS}
        self._snapshot: Snapshot | None = None
        self._views: dict[tuple[str, str, str, bool], View] = {}
        self._known: frozenset[str] = frozenset()

    def _pool(self, pool: Pool) -> CompiledPool:
        members = tuple((self.sources[m.source], m.weight) for m in pool.members)
        relays = tuple(self.sources[name] for name in pool.relays)
        return CompiledPool(
            pool.name, pool, members, relays, self.chain_of(pool.name, pool.failover)
        )

    def chain_of(self, start: str, order: Iterable[str]) -> tuple[str, ...]:
        """Pools after ``start`` in failover order, each followed by its own chain, none twice."""
        seen: dict[str, None] = {}

        def walk(names: Iterable[str]) -> None:
            for name in names:
                if name != start and name not in seen and name in self.policy.pools:
                    seen[name] = None
                    walk(self.policy.pools[name].failover)

        walk(order)
        return tuple(seen)

    def _rivals(self) -> dict[Bucket, tuple[Bucket, ...]]:
        """For each bucket the others that some source serves as well."""
        kinds = [source.buckets for source in self.sources.values()]
        return {
            bucket: tuple(
                other
                for other in Bucket
                if other is not bucket and any({bucket, other} <= kind for kind in kinds)
            )
            for bucket in Bucket
        }

    def _default_shares(self, bucket: str) -> tuple[Share, ...]:
        """Where a bucket goes when no rule names a pool: its own setting, the pool of its name, the
        pool ``default``."""
        if shares := self.policy.bucket(bucket).pools:
            return shares
        for name in (bucket, CATCH_ALL_POOL):
            if name in self.policy.pools:
                return (Share(name, 100),)
        return ()

    def default_shares(self, bucket: str) -> tuple[Share, ...]:
        """The pools of a bucket where nothing else chose."""
        return self._default[bucket]

    def affinity(self, api_key: str, domain: str, tenant: str, bucket: str) -> Affinity | None:
        """The affinity that applies: API key before sending domain before tenant."""
        for index, value in (
            (self.by_key, api_key),
            (self.by_domain, domain),
            (self.by_tenant, tenant),
        ):
            for affinity in index.get(value, ()):
                if not affinity.buckets or bucket in affinity.buckets:
                    return affinity
        return None

    def pool_serves(self, pool: str, bucket: str) -> bool:
        """Whether any source of the pool may take the bucket at all."""
        compiled = self.pools.get(pool)
        return compiled is not None and any(bucket in s.buckets for s, _ in compiled.members)

    def view(
        self, snapshot: Snapshot, pool: str, provider: str, bucket: str, *, relays: bool
    ) -> View:
        """The candidates among a pool's sources, or among its fallback relays."""
        if snapshot is not self._snapshot:
            self._snapshot, self._views = snapshot, {}
            self._known = frozenset(key.split("|", 2)[1] for key in snapshot.paths)
        key = (pool, provider if provider in self._known else OTHER, bucket, relays)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._make_view(snapshot, *key)
        return view

    def _path(
        self, snapshot: Snapshot, source: CompiledSource, provider: str, bucket: str
    ) -> PathState:
        """The path's state. A source that starts cold is cold, with the first day's cap, until
        reputation says more: an unknown path must never be a way around warmup."""
        path = snapshot.path(source.name, provider, bucket)
        warmup = self.policy.warmup
        if path is not _UNKNOWN or source.source.warm or not warmup.enabled:
            return path
        start = warmup.by_provider.get(provider, {}).get("start", warmup.start)
        return PathState(state="cold", cap_day=int(start))

    def _make_view(
        self, snapshot: Snapshot, pool: str, provider: str, bucket: str, relays: bool
    ) -> View:
        compiled = self.pools[pool]
        members = [(s, 1.0) for s in compiled.relays] if relays else compiled.members
        candidates = []
        barred = []
        for source, base in members:
            if bucket not in source.buckets:
                barred.append(source.name)
                continue
            path = self._path(snapshot, source, provider, bucket)
            weight = max(base * path.weight * path.score * path.score, 1e-9)
            region = source.region or compiled.pool.region or ""
            node = (source.seed, 1.0 / weight)
            candidates.append(
                Candidate(source, pool, region, base, weight, path, source.name, node)
            )
        return View(
            tuple(candidates),
            tuple(c.node for c in candidates),
            sum(c.weight for c in candidates),
            tuple(barred),
        )


_UNKNOWN = Snapshot(0, 0.0, 0, {}).path("", "", "")


def _affinities(affinities: Iterable[Affinity], field: str) -> dict[str, tuple[Affinity, ...]]:
    """Affinities by the value of one field, in the policy's order."""
    out: dict[str, tuple[Affinity, ...]] = {}
    for affinity in affinities:
        value = getattr(affinity, field)
        if value:
            value = value if field == "api_key" else value.lower()
            out[value] = (*out.get(value, ()), affinity)
    return out
