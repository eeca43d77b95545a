"""The keys of a policy file: what each means and holds. The reference, the JSON schema and the loader
are made from these tables."""

from __future__ import annotations

from typing import Any

from mailweir.contracts.policy import (
    Action,
    Affinity,
    Auth,
    BucketPolicy,
    DkimKey,
    Match,
    Pool,
    Retry,
    SendingDomain,
    Source,
    Thresholds,
    Throttle,
    Tls,
    Warmup,
)
from router.policy.kinds import Duration, Flag, Key, ListOf, MapOf, Number, Rate, Record, Text
from router.policy.values import (
    BUCKET_LIST,
    BUCKET_PATTERNS,
    DOMAIN,
    HOST,
    IP,
    NAME,
    PATTERNS,
    SECRET,
    TLS,
    WEIGHT,
    WINDOW,
    Members,
    Names,
    Shares,
    split_kind,
)

SHARE = Number(0.0, 1.0)
NAMED = Shares()
_BY_REFERENCE = "secrets are given by reference only: auth: {username: ..., secret: env:NAME}"
_NO_SECRET = dict.fromkeys(
    ("password", "passwd", "token", "api_token", "secret_key"), _BY_REFERENCE
)


def _struct(cls: type, **renamed: str) -> Any:
    """A builder that hands the values to a struct, some under another name."""

    def build(values: dict[str, Any]) -> Any:
        return cls(**{renamed.get(k, k): v for k, v in values.items()})

    return build


AUTH = Record(
    {
        "username": Key(Text(), "User name.", required=True),
        "secret": Key(SECRET, "Reference to the password or key.", required=True),
        "mechanism": Key(
            Text(choices=("auto", "plain", "login", "cram-md5", "xoauth2")), "AUTH mechanism."
        ),
    },
    _struct(Auth),
    hints=_NO_SECRET,
)
TLS_OF_SOURCE = Record(
    {
        "mode": Key(TLS, "opportunistic, required, verified or none.", required=True),
        "ca_file": Key(Text(), "File with the certificates trusted."),
    },
    _struct(Tls),
    short_key="mode",
)
SOURCE = Record(
    {
        "kind": Key(
            Text(choices=("mx", "relay", "ses", "sendgrid", "mailgun")),
            "mx: own IP straight to the MX (default); relay: smarthost by SMTP; the others by HTTP.",
        ),
        "ip": Key(IP, "Local address to send from (kind mx)."),
        "ehlo": Key(DOMAIN, "Name announced in EHLO; equal to the address' PTR."),
        "host": Key(HOST, "Host of a relay, or base of an HTTP API."),
        "port": Key(Number(1, 65535, whole=True), "Port of a relay."),
        "tls": Key(TLS_OF_SOURCE, "TLS toward a relay."),
        "auth": Key(AUTH, "Credentials of a relay or API."),
        "region": Key(NAME, "Region the source sends from."),
        "proxy": Key(
            Text(
                pattern=r"(socks5|haproxy)://[^\s/]+:\d+",
                says="socks5://host:port or haproxy://host:port",
            ),
            "Egress proxy that owns the address.",
        ),
        "warm": Key(Flag(), "false: starts cold and is warmed up per provider; default true."),
        "buckets": Key(BUCKET_LIST, "Buckets it serves; default: what its pools are used for."),
        "shared": Key(Flag(), "Serves transactional and other mail alike; needs shared_reason."),
        "shared_reason": Key(Text(), "Why it is shared."),
        "quota": Key(Rate(), "Quota of a relay."),
        "connections": Key(Number(1, 1000, whole=True), "Connections at once per site."),
        "options": Key(MapOf(Text()), "Settings of the kind, as region or domain of an API."),
    },
    lambda v: Source(name="", **v),
    hints=_NO_SECRET,
)
POOL = Record(
    {
        "sources": Key(Members(), "Sources, with or without weights.", required=True),
        "weight": Key(Number(1, 100, whole=True), "Share where pools are listed without weights."),
        "failover": Key(Names(), "Pools to try, in order, when no source of this one can."),
        "relays": Key(Names(high=5), "Up to 5 fallback relays, in order."),
        "region": Key(NAME, "Region of its sources that have none."),
        "limits": Key(MapOf(Rate()), "Provider -> ceiling of the whole pool."),
        "sticky": Key(Flag(), "Domains and recipients keep their source; default true."),
        "sub_pool": Key(Number(1, 1000, whole=True), "Sources a high-volume domain keeps to."),
        "buckets": Key(BUCKET_LIST, "Buckets it serves; default: what can reach it."),
    },
    lambda v: Pool(name="", members=v.pop("sources"), **v),
)


def _match(values: dict[str, Any]) -> Match:
    headers = values.pop("header", {})
    return Match(header={name.lower(): pattern for name, pattern in headers.items()}, **values)


MATCH = Record(
    {
        "bucket": Key(BUCKET_PATTERNS, "transactional, marketing, bulk."),
        "sending_domain": Key(PATTERNS, "Domain the job is sent as."),
        "recipient_domain": Key(PATTERNS, "Recipient's domain: example.com, *.example.com."),
        "recipient": Key(PATTERNS, "Recipient's address as a pattern: vip-*@example.com."),
        "provider": Key(PATTERNS, "Mailbox provider: gmail|yahoo|outlook."),
        "pool": Key(PATTERNS, "Pool asked for by header or affinity."),
        "header": Key(MapOf(Text()), "Header name -> pattern of its value."),
        "tag": Key(PATTERNS, "Any tag of the job."),
        "tenant": Key(PATTERNS, "Tenant."),
        "api_key": Key(PATTERNS, "Id of the API key (never its secret)."),
        "campaign": Key(PATTERNS, "Campaign."),
        "window": Key(WINDOW, "Time window."),
        "geo": Key(PATTERNS, "Geo zone of the recipient's MX."),
        "risk": Key(PATTERNS, "Risk profile of the job."),
        "engagement": Key(PATTERNS, "high or normal."),
    },
    _match,
    aliases={"type": "bucket"},
)


def _action(values: dict[str, Any]) -> Action:
    pools = values.pop("pool", None) or values.pop("pools", None) or ()
    return Action(pools=pools, **values)


ACTION = Record(
    {
        "pool": Key(NAMED, "The pool."),
        "pools": Key(NAMED, "Several pools with weights 0-100: {a: 80, b: 20}."),
        "split": Key(NAME, "An A/B split of this file."),
        "sign": Key(Flag(), "A DKIM signature is required."),
        "retry_hard": Key(Flag(), "false: no retry after a hard bounce of any kind."),
        "daily_limit": Key(Number(1, 10**9, whole=True), "Jobs of this rule per day."),
        "rate": Key(Rate(), "Rate of this rule."),
        "warm_only": Key(Flag(), "Warm sources only."),
        "strict": Key(Flag(), "Strict limits: the providers' cold ceilings apply."),
        "priority": Key(Number(1, 10, whole=True), "Priority, 1 is first."),
        "tls": Key(TLS, "TLS policy."),
        "region": Key(NAME, "Only sources of this region."),
        "hold_until": Key(WINDOW, "Held until this window opens."),
        "hold": Key(Text(), "Held, with this reason, until the policy changes."),
        "refuse": Key(Text(), "Refused, with this sentence for the submitter."),
        "archive": Key(
            Text(pattern=r"[^\s@]+@[^\s@]+", says="an address"), "Address that gets a copy."
        ),
    },
    _action,
    aliases={"require_signature": "sign", "signature": "sign"},
    one_of=(("pool", "pools", "split", "hold", "refuse"),),
)
RULE = Record(
    {
        "number": Key(Number(0, 10**6, whole=True), "Order; default: place in the list times 10."),
        "name": Key(Text(), "What explain and the journal call it."),
        "match": Key(MATCH, "All conditions must hold; without match: every job."),
        "action": Key(ACTION, "What is done.", required=True),
    },
)
RETRY = Record(
    {
        "schedule": Key(
            ListOf(Duration(low=1.0), low=1, high=50), "Waits between attempts; the last repeats."
        ),
        "backoff": Key(
            Text(choices=("exponential", "fixed")),
            "A schedule by name: exponential (1m doubling to 6h), fixed (every 15m).",
        ),
        "jitter": Key(SHARE, "Share of each wait by which it varies."),
        "max_age": Key(
            Duration(low=60.0, high=5 * 86400.0), "Age at which a job expires; at most 5d."
        ),
        "max_retries": Key(Number(0, 100, whole=True), "Retries at most; default: age decides."),
        "uncertain": Key(
            Text(choices=("resend", "leave")), "After a connection lost behind the dot."
        ),
    },
    one_of=(("schedule", "backoff"),),
)
BUCKET_RECORD = Record(
    {
        "priority": Key(Number(1, 10, whole=True), "Priority of jobs that bring none."),
        "rate_limit": Key(Rate(), "Limit of the bucket, whole fleet."),
        "worker_rate_limit": Key(Rate(), "Limit of the bucket per worker process."),
        "recipient_limit": Key(Rate(none=True), "Jobs per recipient; none: no limit. Default 5/h."),
        "retry": Key(RETRY, "Retry."),
        "pool": Key(NAMED, "Where its jobs go when no rule names a pool."),
        "pools": Key(NAMED, "The same with weights."),
    },
    aliases={"rate": "rate_limit", "worker_rate": "worker_rate_limit"},
    one_of=(("pool", "pools"),),
)
AFFINITY = Record(
    {
        "pool": Key(NAME, "The pool.", required=True),
        "sending_domain": Key(DOMAIN, "Jobs sent as this domain."),
        "tenant": Key(NAME, "Jobs of this tenant."),
        "api_key": Key(NAME, "Jobs submitted with this key."),
        "failover": Key(Names(), "Pools to try then, in place of the pool's own order."),
        "buckets": Key(BUCKET_LIST, "Only for these buckets."),
    },
    _struct(Affinity),
    one_of=(("sending_domain", "tenant", "api_key"),),
)
DKIM = Record(
    {
        "selector": Key(
            Text(pattern=r"[A-Za-z0-9._-]+", says="a DNS label"), "Selector.", required=True
        ),
        "secret": Key(SECRET, "Reference to the private key (PEM).", required=True),
        "domain": Key(DOMAIN, "d=; default: the sending domain."),
    },
    _struct(DkimKey),
    hints=_NO_SECRET,
)
DOMAIN_RECORD = Record(
    {
        "dkim": Key(ListOf(DKIM, high=5), "Signing keys; all sign side by side."),
        "bounce_domain": Key(DOMAIN, "Domain of return paths."),
        "spf": Key(Text(), "Expected SPF record."),
        "dmarc": Key(Text(), "Expected DMARC record."),
        "dkim_record": Key(DOMAIN, "Name of the DKIM record expected in DNS."),
        "pool": Key(NAME, "Primary pool of jobs sent as this domain."),
        "failover": Key(Names(), "Pools to try then, in order."),
    },
)
PROVIDER = Record(
    {
        "connections": Key(Number(1, 1000, whole=True), "Connections at once per source and site."),
        "per_connection": Key(Number(1, 10_000, whole=True), "Messages per connection."),
        "rate": Key(Rate(), "Rate of a warm source."),
        "cold_rate": Key(Rate(), "Ceiling while warming."),
        "tls": Key(TLS, "TLS toward it."),
        "idle": Key(Duration(low=1.0, high=600.0), "How long an idle connection is kept."),
        "retry_min": Key(Duration(), "Shortest wait before a retry."),
        "ipv6": Key(Flag(), "Whether IPv6 is used."),
        "per_recipient_hour": Key(Number(1, 10**6, whole=True), "Jobs per recipient and hour."),
    },
)
_CURVE = MapOf(Number(0, 10**9), name=r"start|growth|max_step|target")
WARMUP = Record(
    {
        "enabled": Key(Flag(), "Whether cold sources are warmed up."),
        "start": Key(Number(1, 10**6, whole=True), "Jobs on day one, per source and provider."),
        "growth": Key(Number(0.1, 0.3), "Growth a day, 0.1 to 0.3."),
        "max_step": Key(Number(1, 10**6, whole=True), "Growth a day at most, in jobs."),
        "target": Key(Number(1, 10**9, whole=True), "A path above this cap is warm."),
        "by_provider": Key(MapOf(_CURVE), "The same per provider."),
    },
    _struct(Warmup),
)
THRESHOLDS = Record(
    {
        "bounce_rate": Key(SHARE, "Bounces that slow a path."),
        "complaint_rate": Key(SHARE, "Complaints that slow a path."),
        "delivery_rate": Key(SHARE, "Sent at the first attempt; below: out of rotation."),
        "soft_rate": Key(SHARE, "Soft bounces that take a source out."),
        "soft_peer_rate": Key(SHARE, "While its siblings stay below this."),
        "soft_seconds": Key(Duration(), "For this long."),
        "min_attempts": Key(Number(1, 10**6, whole=True), "Smallest sample."),
        "confidence": Key(Number(0.5, 0.999), "Confidence needed."),
        "throttle_below": Key(SHARE, "Score below which a .throttled queue is used."),
        "hold_below": Key(SHARE, "Score below which jobs are held."),
        "return_above": Key(SHARE, "Score above which a path returns."),
        "return_seconds": Key(Duration(), "After this long."),
        "throttled_share": Key(SHARE, "Share of the live rate on a .throttled queue."),
    },
    _struct(Thresholds),
)
TENANT = Record(
    {
        "weight": Key(Number(0.01, 1000), "Share between tenants under pressure; default 1."),
        "limit": Key(Rate(), "Rate of the tenant."),
    },
)
SECTIONS: dict[str, Key] = {
    "sources": Key(MapOf(SOURCE, low=1), "Ways out: own IPs and relays.", required=True),
    "pools": Key(MapOf(POOL, low=1), "Groups of sources with failover.", required=True),
    "rules": Key(ListOf(RULE, low=1), "Ordered rules; the first match wins.", required=True),
    "buckets": Key(MapOf(BUCKET_RECORD), "Settings of transactional, marketing and bulk."),
    "affinity": Key(ListOf(AFFINITY), "Sending domain, tenant or API key -> pool."),
    "domains": Key(MapOf(DOMAIN_RECORD), "Sending domains: keys, records, own pools."),
    "providers": Key(MapOf(PROVIDER), "Limits toward mailbox providers, over the built-in ones."),
    "splits": Key(MapOf(split_kind(Duration(low=60.0))), "A/B splits."),
    "warmup": Key(WARMUP, "Warmup of cold sources."),
    "thresholds": Key(THRESHOLDS, "When paths are throttled, held, suspended."),
    "regions": Key(Names(), "Regions; queues are made per region."),
    "geo": Key(MapOf(MapOf(WEIGHT, low=1)), "Geo zone of the MX -> region -> weight."),
    "residency": Key(MapOf(Names()), "Residency tag -> regions its jobs may leave from."),
    "tenants": Key(MapOf(TENANT), "Weights and limits of tenants."),
    "limits": Key(
        Record({"global": Key(Rate(), "Limit of everything we send.")}),
        "Limits of the whole house.",
    ),
    "tls": Key(Record({"default": Key(TLS, "TLS where nothing else is said.")}), "TLS."),
    "header_routing": Key(
        ListOf(Text()), "Tenants and API keys that may ask for pools by header; '*': all."
    ),
}
POLICY = Record(SECTIONS)
EXPONENTIAL = (60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3840.0, 7680.0, 15360.0, 21600.0)
FIXED = (900.0,)


def make_retry(values: dict[str, Any], base: Retry) -> Retry:
    """A bucket's retry: given keys over the bucket's defaults."""
    given = dict(values)
    match given.pop("backoff", None):
        case "exponential":
            given["schedule"] = EXPONENTIAL
        case "fixed":
            given["schedule"] = FIXED
    fields = {name: getattr(base, name) for name in Retry.__struct_fields__}
    return Retry(**{**fields, **given})


def make_bucket(values: dict[str, Any], base: BucketPolicy) -> BucketPolicy:
    """A bucket's settings over its defaults."""
    limit: Throttle | None = values.get("recipient_limit", base.recipient_limit)
    return BucketPolicy(
        retry=make_retry(values.get("retry", {}), base.retry),
        rate=values.get("rate_limit", base.rate),
        worker_rate=values.get("worker_rate_limit", base.worker_rate),
        priority=values.get("priority", base.priority),
        recipient_limit=limit,
        pools=values.get("pool") or values.get("pools") or base.pools,
    )


def make_domain(name: str, values: dict[str, Any]) -> tuple[SendingDomain, Affinity | None]:
    """A sending domain, and the affinity its own pool is."""
    given = {k: v for k, v in values.items() if k not in ("pool", "failover")}
    affinity = None
    if "pool" in values:
        affinity = Affinity(
            values["pool"], sending_domain=name, failover=values.get("failover", ())
        )
    return SendingDomain(name=name, **given), affinity
