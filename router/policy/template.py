"""The article's template (top key ``router.queues``), accepted as written with stated completions.

S74: a pool named only in ``ip_pool`` is made from the stack's default source; a missing catch-all is the
bucket's own queue and pool; ``bulk`` inherits ``marketing``; ``priority: high|low`` is 1 and 8; a bare rate is
per minute and per worker process. Each completion is a warning, and holds for this form only.
"""

from __future__ import annotations

from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode

from mailweir.contracts.policy import (
    Action,
    BucketPolicy,
    Match,
    Member,
    Policy,
    Pool,
    Provider,
    Retry,
    Rule,
    SendingDomain,
    Share,
    Source,
    Thresholds,
    Warmup,
)
from router.policy.default import default_buckets
from router.policy.document import pairs
from router.policy.grammar import EXPONENTIAL, FIXED, SHARE
from router.policy.kinds import (
    BAD,
    Flag,
    Key,
    Kind,
    ListOf,
    MapOf,
    Number,
    Path,
    Rate,
    Reader,
    Record,
    Text,
)
from router.policy.lint import implied
from router.policy.values import BUCKETS, DOMAIN, NAME

DEFAULT_SOURCE = "default"
PRIORITIES = {"high": 1, "low": 8, "normal": 5, "medium": 5}
SHARED_REASON = "the template names no sources: everything leaves by the stack's default one"

_QUEUE = Record(
    {
        "priority": Key(Text(choices=tuple(PRIORITIES)), "high or low."),
        "ip_pool": Key(NAME, "The pool.", required=True),
        "rate_limit": Key(Rate(bare=60.0), "Jobs per minute and worker."),
        "retry_policy": Key(
            Record(
                {
                    "max_retries": Key(Number(0, 100, whole=True), "Retries."),
                    "backoff": Key(Text(choices=("exponential", "fixed")), "Schedule."),
                }
            ),
            "Retry.",
        ),
    }
)
_REPUTATION = Record(
    {
        "warm_up": Key(
            Record(
                {
                    "enabled": Key(Flag(), "Whether."),
                    "initial_volume": Key(Number(1, 10**6, whole=True), "Day one."),
                    "daily_increase": Key(Number(0.1, 0.3), "Growth."),
                    "max_daily_increase": Key(Number(1, 10**6, whole=True), "At most."),
                }
            ),
            "Warmup.",
        ),
        "thresholds": Key(
            Record(
                {
                    "bounce_rate": Key(SHARE, "Bounces."),
                    "complaint_rate": Key(SHARE, "Complaints."),
                    "action": Key(Text(choices=("throttle", "pause")), "What then."),
                }
            ),
            "Thresholds.",
        ),
    }
)
_DNS = Record(
    {
        "domains": Key(
            ListOf(
                Record(
                    {
                        "name": Key(DOMAIN, "Sending domain.", required=True),
                        "spf": Key(Text(), "SPF record."),
                        "dkim": Key(DOMAIN, "Name of the DKIM record."),
                        "dmarc": Key(Text(), "DMARC record."),
                    }
                )
            ),
            "Domains.",
        )
    }
)
_SECTIONS: dict[str, Key] = {
    "reputation": Key(_REPUTATION, "Warmup and thresholds."),
    "dns": Key(_DNS, "Sending domains."),
}
_ROUTER = Record({"queues": Key(MapOf(_QUEUE, low=1), "Queues.", required=True), **_SECTIONS})
TEMPLATE: Kind = Record({"router": Key(_ROUTER, "Queues.", required=True), **_SECTIONS})


def is_template(root: MappingNode) -> bool:
    """Whether this is the old form: a top key ``router`` that holds ``queues``."""
    return any(
        _named(key, "router")
        and isinstance(value, MappingNode)
        and any(_named(inner, "queues") for inner, _ in pairs(value))
        for key, value in pairs(root)
    )


def _named(node: Node, name: str) -> bool:
    return isinstance(node, ScalarNode) and node.value == name


def read(root: MappingNode, reader: Reader, providers: dict[str, Provider]) -> Policy:
    """The policy of a template, with its completions as warnings."""
    values = TEMPLATE.read(root, (), reader)
    if values is BAD or reader.problems:
        return Policy()
    queues: dict[str, Any] = values["router"]["queues"]
    for name in queues:
        if name not in BUCKETS:
            path: Path = ("router", "queues", name)
            reader.say(path, path, f"{name!r} is not a bucket", f"one of {', '.join(BUCKETS)}")
    if reader.problems:
        return Policy()
    at: Path = ("router", "queues")
    if "bulk" not in queues and "marketing" in queues:
        queues["bulk"] = queues["marketing"]
        reader.warn(at, (*at, "bulk"), "bulk is not given: it inherits marketing", "")
    pools = _pools(queues, reader)
    return Policy(
        sources={DEFAULT_SOURCE: Source(DEFAULT_SOURCE, shared=True, shared_reason=SHARED_REASON)},
        pools=pools,
        rules=_rules(queues, pools, reader),
        buckets=_buckets(queues, reader),
        domains=_domains(values, reader),
        providers=providers,
        warmup=_warmup(values),
        thresholds=_thresholds(values),
    )


def _pools(queues: dict[str, Any], reader: Reader) -> dict[str, Pool]:
    pools = {}
    for name, queue in queues.items():
        pool = queue["ip_pool"]
        if pool in pools:
            continue
        path: Path = ("router", "queues", name, "ip_pool")
        message = f"pool {pool!r} is only named: it is made from the stack's default source"
        reader.warn(path, path, message, "define sources: and pools: to keep mail apart")
        pools[pool] = Pool(pool, (Member(DEFAULT_SOURCE),))
    return pools


def _rules(queues: dict[str, Any], pools: dict[str, Pool], reader: Reader) -> tuple[Rule, ...]:
    at: Path = ("router", "queues")
    message = "no catch-all: each bucket goes to its own queue and pool"
    reader.warn(at, at, message, "rules: with a last one without match")
    rules = []
    for i, bucket in enumerate(BUCKETS):
        queue = queues.get(bucket)
        pool = queue["ip_pool"] if queue is not None else next(iter(pools))
        if queue is None:
            reader.warn(at, (*at, bucket), f"{bucket} is not given: it goes to pool {pool!r}", "")
        line = reader.line((*at, bucket))
        action = Action(pools=(Share(pool, 100),))
        rules.append(Rule((i + 1) * 10, bucket, Match(bucket=(bucket,)), action, line))
    return tuple(rules)


def _buckets(queues: dict[str, Any], reader: Reader) -> dict[str, BucketPolicy]:
    buckets = default_buckets()
    for name, queue in queues.items():
        base = buckets[name]
        given = queue.get("retry_policy", {})
        schedule = {"exponential": EXPONENTIAL, "fixed": FIXED}.get(
            given.get("backoff", ""), base.retry.schedule
        )
        retries = given.get("max_retries")
        path: Path = ("router", "queues", name, "retry_policy", "max_retries")
        if retries is not None and path in reader.lines:
            minutes = implied(schedule, retries) / 60
            used = "1 retry is" if retries == 1 else f"{retries} retries are"
            message = f"{used} used after {minutes:g} minutes"
            reader.warn(path, path, message, "leave it out: age decides")
        path = ("router", "queues", name, "rate_limit")
        if "rate_limit" in queue and path in reader.lines:
            reader.warn(path, path, f"{queue['rate_limit']} for each worker process", "")
        buckets[name] = BucketPolicy(
            retry=Retry(
                schedule=schedule,
                jitter=base.retry.jitter,
                max_age=base.retry.max_age,
                max_retries=retries,
                uncertain=base.retry.uncertain,
            ),
            worker_rate=queue.get("rate_limit"),
            priority=PRIORITIES[queue["priority"]] if "priority" in queue else base.priority,
        )
    return buckets


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A section at the top, or (the article's indentation was lost) under ``router``."""
    found: dict[str, Any] = values.get(name) or values["router"].get(name) or {}
    return found


def _domains(values: dict[str, Any], reader: Reader) -> dict[str, SendingDomain]:
    out = {}
    for given in _section(values, "dns").get("domains", ()):
        out[given["name"]] = SendingDomain(
            given["name"],
            spf=given.get("spf"),
            dmarc=given.get("dmarc"),
            dkim_record=given.get("dkim"),
        )
        path: Path = ("dns", "domains")
        message = f"no DKIM key for {given['name']}: its mail goes out unsigned"
        reader.warn(path, path, message, "domains: with dkim: [{selector: ..., secret: ...}]")
    return out


def _warmup(values: dict[str, Any]) -> Warmup:
    names = {
        "enabled": "enabled",
        "initial_volume": "start",
        "daily_increase": "growth",
        "max_daily_increase": "max_step",
    }
    given = _section(values, "reputation").get("warm_up", {})
    return Warmup(**{names[name]: value for name, value in given.items()})


def _thresholds(values: dict[str, Any]) -> Thresholds:
    given = _section(values, "reputation").get("thresholds", {})
    return Thresholds(**{n: x for n, x in given.items() if n != "action"})
