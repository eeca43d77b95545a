"""A policy file: text in, :class:`Policy` and every problem with its line out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mailweir.contracts.policy import Policy, Provider, Rule
from mailweir.mail.providers import default_providers
from router.policy import references, template
from router.policy.default import default_buckets
from router.policy.document import Unreadable, line_of, parse
from router.policy.grammar import POLICY, make_bucket, make_domain
from router.policy.kinds import BAD, Path, Reader
from router.policy.lint import lint
from router.policy.problems import Loaded, PolicyRefused, Problem, Severity
from router.policy.values import BUCKETS


def load(
    text: str | bytes,
    *,
    file: str = "policy.yaml",
    providers: Mapping[str, Provider] | None = None,
) -> Loaded:
    """Read, check and lint a policy. Never raises for what the file holds: see ``problems``.

    ``providers`` are the defaults the file's ``providers`` refine (default: the built-in table).
    """
    known = dict(default_providers() if providers is None else providers)
    reader = Reader(file)
    try:
        root = parse(text)
    except Unreadable as error:
        problem = Problem(file, error.line, "", Severity.ERROR, error.message, error.right)
        return Loaded(Policy(), (problem,), complete=False)
    reader.lines[()] = line_of(root)
    if template.is_template(root):
        policy = template.read(root, reader, known)
        return Loaded(policy, _sorted(reader))
    values = POLICY.read(root, (), reader)
    if values is BAD or _has_errors(reader):
        # the rest would only repeat what is already said: a broken pool is not also a missing one
        return Loaded(Policy(), _sorted(reader), complete=False)
    policy = _build(values, reader, known)
    references.check(policy, reader)
    if not _has_errors(reader):
        lint(policy, reader)
    return Loaded(policy, _sorted(reader))


def load_checked(text: str | bytes, *, file: str = "policy.yaml") -> Loaded:
    """:func:`load`, raising :class:`PolicyRefused` with the errors."""
    loaded = load(text, file=file)
    if not loaded.ok:
        raise PolicyRefused(loaded.errors)
    return loaded


def _has_errors(reader: Reader) -> bool:
    return any(p.severity is Severity.ERROR for p in reader.problems)


def _sorted(reader: Reader) -> tuple[Problem, ...]:
    return tuple(sorted(reader.problems, key=lambda p: (p.line, p.severity)))


def _build(v: dict[str, Any], reader: Reader, known: dict[str, Provider]) -> Policy:
    """The policy of the sections' values."""
    domains, own_pools = {}, []
    for name, given in v.get("domains", {}).items():
        domain, affinity = make_domain(name.lower(), given)
        domains[domain.name] = domain
        if affinity is not None:
            own_pools.append(affinity)
    buckets = default_buckets()
    for name, given in v.get("buckets", {}).items():
        if name in BUCKETS:
            buckets[name] = make_bucket(given, buckets[name])
        else:
            path: Path = ("buckets", name)
            reader.say(path, path, f"{name!r} is not a bucket", f"one of {', '.join(BUCKETS)}")
    for name, given in v.get("providers", {}).items():
        known[name] = msgspec.structs.replace(known.get(name) or Provider(name), **given)
    policy = Policy(
        sources=_named(v["sources"]),
        pools=_named(v["pools"]),
        rules=_rules(v["rules"], reader),
        buckets=buckets,
        affinity=(*v.get("affinity", ()), *own_pools),
        domains=domains,
        providers=known,
        splits=v.get("splits", {}),
        regions=v.get("regions", ()),
        geo=v.get("geo", {}),
        residency=v.get("residency", {}),
        tenants={n: t["weight"] for n, t in v.get("tenants", {}).items() if "weight" in t},
        tenant_limits={n: t["limit"] for n, t in v.get("tenants", {}).items() if "limit" in t},
        global_limit=v.get("limits", {}).get("global"),
        tls_default=v.get("tls", {}).get("default", "opportunistic"),
        header_routing=v.get("header_routing", ()),
    )
    changes = {name: v[name] for name in ("warmup", "thresholds") if name in v}
    return msgspec.structs.replace(policy, **changes)


def _named(items: dict[str, Any]) -> dict[str, Any]:
    return {name: msgspec.structs.replace(item, name=name) for name, item in items.items()}


def _rules(given: tuple[dict[str, Any], ...], reader: Reader) -> tuple[Rule, ...]:
    """Rules in order; numbers and names that are not given follow from the place in the list."""
    rules = []
    numbers: dict[int, int] = {}
    names: dict[str, int] = {}
    for i, values in enumerate(given):
        line = reader.line(("rules", i))
        number = values.get("number", (i + 1) * 10)
        name = values.get("name", f"rule {number}")
        for what, key, seen in (("number", number, numbers), ("name", name, names)):
            if key in seen:
                path: Path = ("rules", i, what)
                where = f"the rule on line {seen[key]} has it too; give this one another"
                reader.say(path, path, f"{what} {key!r} is taken", where)
            seen.setdefault(key, line)
        rule = Rule(number, name, line=line, action=values["action"])
        if "match" in values:
            rule = msgspec.structs.replace(rule, match=values["match"])
        rules.append(rule)
    return tuple(sorted(rules, key=lambda rule: rule.number))
