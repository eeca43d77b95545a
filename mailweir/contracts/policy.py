"""The compiled policy: what the operator's YAML means, after every check and default.

``router.policy`` loads and lints the YAML into this shape; the shape itself lives on the ground floor
because workers (sources, throttles, retry) and reputation (warmup, thresholds) obey it too. It is
stored as JSON beside its YAML in SQL, versioned, and read by every process within 2 s of a change.
Rates are jobs per second (float), times seconds, unless a name says otherwise.
"""

from __future__ import annotations

from typing import Any

import msgspec

CATCH_ALL_POOL = "default"


class Throttle(msgspec.Struct, frozen=True):
    """A rate over time. ``"500/min"`` in YAML is ``Throttle(500, 60)``."""

    count: int
    per: float  # seconds

    @property
    def rate(self) -> float:
        """Jobs per second."""
        return self.count / self.per

    def __str__(self) -> str:
        names = {1.0: "s", 60.0: "min", 3600.0: "h", 86400.0: "day"}
        return f"{self.count}/{names.get(self.per, f'{self.per:g}s')}"


class Tls(msgspec.Struct, frozen=True, omit_defaults=True):
    """TLS of a source or route: opportunistic, required, verified or none (plain text only)."""

    mode: str = "opportunistic"
    ca_file: str | None = None


class Auth(msgspec.Struct, frozen=True, omit_defaults=True):
    """Credentials by reference, never by value: ``env:NAME``, ``file:/path``, ``vault:...``, ``aws:...``."""

    username: str
    secret: str  # a reference
    mechanism: str = "auto"  # auto | plain | login | cram-md5 | xoauth2


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """One way out: an own IP (kind ``mx``), a smarthost or ESP by SMTP (``relay``), an ESP's HTTP API."""

    name: str
    kind: str = "mx"  # mx | relay | ses | sendgrid | mailgun
    ip: str | None = None  # local address to bind (kind mx)
    ehlo: str | None = None  # EHLO name; default: settings' host name
    host: str | None = None  # relay host, or API base
    port: int = 25
    tls: Tls | None = None
    auth: Auth | None = None
    region: str | None = None
    proxy: str | None = None  # socks5://host:port | haproxy://host:port (S34)
    warm: bool = True  # False: starts cold and is warmed up per provider
    buckets: tuple[
        str, ...
    ] = ()  # buckets it serves; empty: derived from its pools (isolation S14)
    shared: bool = False  # serves transactional and others alike
    shared_reason: str = ""
    quota: Throttle | None = None  # relay quota, its own throttle layer
    connections: int | None = None  # per site; None: the provider's
    options: dict[str, Any] = msgspec.field(
        default_factory=dict
    )  # kind-specific (region, domain ...)


class Member(msgspec.Struct, frozen=True, omit_defaults=True):
    """A source inside a pool."""

    source: str
    weight: float = 1.0


class Pool(msgspec.Struct, frozen=True, omit_defaults=True):
    """Weighted group of sources, with its failover order."""

    name: str
    members: tuple[Member, ...]
    weight: int = 100  # 1-100, used where several pools share (Split)
    failover: tuple[str, ...] = ()  # pools, in order
    relays: tuple[str, ...] = ()  # up to 5 fallback relays (sources of relay kinds)
    region: str | None = None
    limits: dict[str, Throttle] = msgspec.field(default_factory=dict)  # provider -> pool's ceiling
    sticky: bool = True  # S16
    sub_pool: int | None = None  # sources a high-volume domain keeps to; None: all of the pool
    buckets: tuple[str, ...] = ()  # buckets its sources serve; empty: what can reach the pool


class Share(msgspec.Struct, frozen=True, omit_defaults=True):
    """One arm of a weighted choice between pools, or (A/B) between sources and relays of pools."""

    pool: str
    weight: int  # 0-100; 0 takes nothing by weight and is only a fallback of its siblings
    source: str | None = None  # this source or relay of the pool only (splits)
    to: int | None = None  # weight at the end of a gradual shift
    shift_start: float = 0.0  # Unix seconds
    shift_seconds: float = 0.0


class Window(msgspec.Struct, frozen=True, omit_defaults=True):
    """A time window: weekdays (0 = Monday), minutes of the day, in a zone."""

    zone: str = "UTC"
    days: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)
    start: int = 0  # minute of the day, inclusive
    end: int = 1440  # exclusive; smaller than start: over midnight


class Match(msgspec.Struct, frozen=True, omit_defaults=True):
    """All given fields must match; a tuple field matches if any of its values does. Patterns are globs
    with ``|`` for alternatives, case-insensitive."""

    bucket: tuple[str, ...] = ()
    sending_domain: tuple[str, ...] = ()
    recipient_domain: tuple[str, ...] = ()
    recipient: tuple[str, ...] = ()  # address patterns
    provider: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()  # a pool asked for by header or affinity
    header: dict[str, str] = msgspec.field(default_factory=dict)  # lower-case name -> glob
    tag: tuple[str, ...] = ()
    tenant: tuple[str, ...] = ()
    api_key: tuple[str, ...] = ()
    campaign: tuple[str, ...] = ()
    window: Window | None = None
    geo: tuple[str, ...] = ()
    risk: tuple[str, ...] = ()
    engagement: tuple[str, ...] = ()


class Action(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a matching rule asks for."""

    pools: tuple[Share, ...] = ()
    sign: bool = False
    retry_hard: bool = True
    daily_limit: int | None = None
    rate: Throttle | None = None
    warm_only: bool = False
    strict: bool = False
    priority: int | None = None
    tls: str | None = None
    region: str | None = None
    hold_until: Window | None = None  # held until this window opens
    hold: str | None = None  # held with this reason until the policy changes
    refuse: str | None = None  # refused with this detail
    archive: str | None = None
    split: str | None = None  # name of an A/B split


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """One routing rule; the lowest number is tried first, the first match wins (S12)."""

    number: int
    name: str
    match: Match = Match()
    action: Action = Action()
    line: int = 0  # of the YAML, for explain


class Retry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Retry of a bucket: age decides; ``max_retries`` only where a policy sets it (S39)."""

    schedule: tuple[float, ...] = (60, 300, 900, 1800, 3600, 7200, 14400, 14400, 21600)
    jitter: float = 0.2  # share of each step
    max_age: float = 72 * 3600
    max_retries: int | None = None
    uncertain: str = "leave"  # resend | leave (N41)


class BucketPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Settings of a bucket."""

    retry: Retry = Retry()
    rate: Throttle | None = None  # the bucket's own layer, whole fleet
    worker_rate: Throttle | None = None  # per worker process (the article's bare rate_limit)
    priority: int = 5
    recipient_limit: Throttle | None = Throttle(5, 3600)  # S21
    pools: tuple[Share, ...] = ()  # where a bucket goes when no rule says


class Affinity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sending domain, tenant or API key -> pool, with its own failover order (S17)."""

    pool: str
    sending_domain: str | None = None
    tenant: str | None = None
    api_key: str | None = None
    failover: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()  # only for these; empty: every bucket the pool may serve


class SendingDomain(msgspec.Struct, frozen=True, omit_defaults=True):
    """A domain we send as: its DKIM keys (references), bounce domain, expected DNS."""

    name: str
    dkim: tuple[DkimKey, ...] = ()
    bounce_domain: str | None = None
    spf: str | None = None
    dmarc: str | None = None
    dkim_record: str | None = None  # name of the DKIM record DNS must hold (S72)


class DkimKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """A signing key by reference; several sign side by side (rotation, RSA + Ed25519)."""

    selector: str
    secret: str  # a reference to a PEM private key
    domain: str | None = None  # d=; default: the sending domain


class Provider(msgspec.Struct, frozen=True, omit_defaults=True):
    """Limits toward one mailbox provider, per source (defaults from providers.yaml)."""

    name: str
    connections: int = 3  # at once, per source and site
    per_connection: int = 20  # messages before we close
    rate: Throttle = Throttle(60, 60)  # a warm source
    cold_rate: Throttle = Throttle(10, 60)  # ceiling while warming
    tls: str = "opportunistic"
    idle: float = 30.0
    retry_min: float | None = None
    ipv6: bool = True
    per_recipient_hour: int | None = None


class Warmup(msgspec.Struct, frozen=True, omit_defaults=True):
    """S53. ``start`` jobs on day one per source and provider, ``growth`` a day, at most ``max_step`` more."""

    enabled: bool = True
    start: int = 50
    growth: float = 0.2
    max_step: int = 5000
    target: int = 20000  # a path above this cap is warm
    by_provider: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)


class Thresholds(msgspec.Struct, frozen=True, omit_defaults=True):
    """S52 and S11."""

    bounce_rate: float = 0.02
    complaint_rate: float = 0.001
    delivery_rate: float = 0.92
    soft_rate: float = 0.03
    soft_peer_rate: float = 0.015
    soft_seconds: float = 1800.0
    min_attempts: int = 50
    confidence: float = 0.95
    throttle_below: float = 0.7
    hold_below: float = 0.4
    return_above: float = 0.75
    return_seconds: float = 1800.0
    throttled_share: float = 0.5  # of the path's live rate on a .throttled queue


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole policy, compiled. ``version`` is given by the store, 0 for a file not applied."""

    version: int = 0
    sources: dict[str, Source] = msgspec.field(default_factory=dict)
    pools: dict[str, Pool] = msgspec.field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    buckets: dict[str, BucketPolicy] = msgspec.field(default_factory=dict)
    affinity: tuple[Affinity, ...] = ()
    domains: dict[str, SendingDomain] = msgspec.field(default_factory=dict)
    providers: dict[str, Provider] = msgspec.field(default_factory=dict)
    splits: dict[str, tuple[Share, ...]] = msgspec.field(default_factory=dict)
    warmup: Warmup = Warmup()
    thresholds: Thresholds = Thresholds()
    regions: tuple[str, ...] = ()
    geo: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)  # zone -> region -> weight
    residency: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)  # tag -> regions
    tenants: dict[str, float] = msgspec.field(default_factory=dict)  # tenant -> weight (fairness)
    tenant_limits: dict[str, Throttle] = msgspec.field(default_factory=dict)
    global_limit: Throttle | None = None
    tls_default: str = "opportunistic"
    header_routing: tuple[str, ...] = ()  # API keys or tenants that may set X-Mailweir-Pool/-Route

    def bucket(self, name: str) -> BucketPolicy:
        """Settings of a bucket, defaults where the policy is silent."""
        return self.buckets.get(name) or BucketPolicy()
