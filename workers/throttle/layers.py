"""Which limits bind a job: the layers of S31, built from policy, snapshot and orders. Pure."""

from __future__ import annotations

from typing import NamedTuple

from mailweir.contracts.policy import Policy, Provider, Source, Throttle
from mailweir.contracts.route import Orders
from mailweir.contracts.snapshot import OTHER, Snapshot
from mailweir.plumbing import keys
from workers.policy import campaign, tokens

HOUR = 3600.0
DAY = 86400.0
COLD = frozenset({"cold", "warming", "probation", "recovering"})
"""States in which a path is held to the provider's cold rate."""


class Layer(NamedTuple):
    """One limit. ``name`` is what a held job's reason and the metrics say."""

    name: str
    kind: str  # path | rate | count
    a: float  # depth, or the count's limit
    b: float  # tokens a second, or the seconds of a slot

    @property
    def key(self) -> str:
        """The Redis key; of a count, without its slot."""
        if self.kind == "count":
            return keys.counted(self.name, 0).removesuffix(":0")
        return keys.bucket_tokens(self.name)

    def slot_key(self, at: float) -> str:
        """The key of a count at a policy time."""
        return keys.counted(self.name, int(at // self.b))


class Ask(NamedTuple):
    """What jobs of one kind on one path must pass together; asks that are equal share a call."""

    source: str
    provider: str
    layers: tuple[Layer, ...]  # the path's comes first

    @property
    def ceiling(self) -> float:
        """The policy's rate of the path, tokens a second."""
        return self.layers[0].b


def rate_layer(name: str, limit: Throttle, kind: str = "rate") -> Layer:
    """A limit over time as a layer."""
    form = tokens.shape(limit)
    return Layer(name, kind, form.depth, form.rate)


def path_limit(
    snapshot: Snapshot, provider: Provider, source: Source, bucket: str, orders: Orders
) -> Throttle:
    """The rate of a path: the provider's, or its cold ceiling while the source is cold there."""
    state = snapshot.path(source.name, provider.name, bucket).state
    return provider.cold_rate if orders.strict or state in COLD else provider.rate


def layers_for(
    policy: Policy,
    snapshot: Snapshot,
    *,
    source: Source,
    provider: Provider,
    pool: str,
    bucket: str,
    tenant: str,
    orders: Orders,
    throttled: bool,
    worker: str,
    slowed: tuple[str, float] | None = None,
) -> tuple[Layer, ...]:
    """Every layer that binds such a job, the path's first.

    ``slowed``: its campaign bounces too much; the campaign and its rate (workers.policy.campaign).
    ``throttled``: it came by a ``.throttled`` queue, which has its own share of the path (S11)."""
    path = f"{source.name}|{provider.name}"
    limit = path_limit(snapshot, provider, source, bucket, orders)
    found = [rate_layer(keys.path_layer(path), limit, "path")]
    if throttled:
        share = policy.thresholds.throttled_share
        found.append(
            rate_layer(f"throttled:{path}", Throttle(max(1, int(limit.count * share)), limit.per))
        )
    named = policy.pools.get(pool)
    if named is not None and (ceiling := named.limits.get(provider.name)):
        found.append(rate_layer(f"pool:{pool}|{provider.name}", ceiling))
    settings = policy.bucket(bucket)
    if settings.rate:
        found.append(rate_layer(f"bucket:{bucket}", settings.rate))
    if settings.worker_rate:
        found.append(rate_layer(f"worker:{worker}|{bucket}", settings.worker_rate))
    if slowed is not None:
        name, rate = slowed
        found.append(rate_layer(f"campaign:{name}", campaign.limit(rate)))
    if per_tenant := policy.tenant_limits.get(tenant):
        found.append(rate_layer(f"tenant:{tenant}", per_tenant))
    if source.quota:
        found.append(rate_layer(f"quota:{source.name}", source.quota))
    if policy.global_limit:
        found.append(rate_layer("global", policy.global_limit))
    if orders.rate:
        found.append(rate_layer(f"rule:{orders.rule}", parse_rate(orders.rate)))
    if orders.daily_limit is not None:
        found.append(Layer(rule_day(orders.rule), "count", orders.daily_limit, DAY))
    found += cap_layers(snapshot, source.name, provider.name, bucket)
    return tuple(found)


def cap_layers(snapshot: Snapshot, source: str, provider: str, bucket: str) -> list[Layer]:
    """The warmup cap of a source at a provider per hour and day, all buckets together; providers the
    snapshot does not list share ``other``. Probation's cap is of the path: its other buckets go on."""
    state = snapshot.path(source, provider, bucket)
    found = []
    for cap, seconds in ((state.cap_hour, HOUR), (state.cap_day, DAY)):
        if cap is not None:
            name = cap_name(snapshot, source, provider, bucket, seconds)
            found.append(Layer(name, "count", cap, seconds))
    return found


def cap_name(snapshot: Snapshot, source: str, provider: str, bucket: str, seconds: float) -> str:
    """Name of the counter of a path's cap in slots of so many seconds."""
    path = f"{source}|{provider}|{bucket}"
    place = f"{source}|{provider if path in snapshot.paths else OTHER}"
    if seconds == HOUR and snapshot.path(source, provider, bucket).state == "probation":
        return f"caph:{place}|{bucket}"
    return f"{'caph' if seconds == HOUR else 'capd'}:{place}"


def rule_day(rule: str) -> str:
    """Name of a rule's daily limit's counter."""
    return f"ruleday:{rule}"


_PERIODS = {
    "s": 1.0,
    "sec": 1.0,
    "min": 60.0,
    "m": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
    "hour": 3600.0,
    "day": 86400.0,
    "d": 86400.0,
}


def parse_rate(text: str) -> Throttle:
    """``"100/min"`` (as :class:`Throttle` prints itself) as a limit; raises :class:`ValueError`."""
    count, _, period = text.partition("/")
    seconds = _PERIODS.get(period.strip()) or float(period.strip().removesuffix("s"))
    return Throttle(int(count), seconds)
