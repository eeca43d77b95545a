"""What changes between two policies, in words; and between two decisions of the same job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from mailweir.contracts.policy import Policy
from mailweir.contracts.route import Decision, Held, Refused, Routed


class Change(msgspec.Struct, frozen=True):
    """One difference: ``path`` of keys, the values before and after (None: not there)."""

    path: str
    before: Any
    after: Any


def diff(old: Policy, new: Policy) -> list[Change]:
    """Every difference that has a meaning; versions and lines have none."""
    return list(_walk("", _plain(old), _plain(new)))


def _plain(policy: Policy) -> Any:
    """The policy as plain values, rules by name so that a moved rule is no rewritten one."""
    values = msgspec.to_builtins(msgspec.structs.replace(policy, version=0))
    values["rules"] = {
        rule["name"]: {k: v for k, v in rule.items() if k not in ("name", "line")}
        for rule in values.get("rules", ())
    }
    for pool in values.get("pools", {}).values():
        pool["members"] = {m["source"]: m.get("weight", 1.0) for m in pool["members"]}
    return values


def _walk(path: str, old: Any, new: Any) -> Iterator[Change]:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            here = f"{path}.{key}" if path else str(key)
            yield from _walk(here, old.get(key), new.get(key))
        return
    yield Change(path, old, new)


def way(decision: Decision) -> str:
    """A decision in one word or way: what shadow policies and simulations compare."""
    match decision:
        case Routed():
            return f"{decision.queue} {decision.pool}/{decision.source}"
        case Held():
            return "held"
        case Refused():
            return f"refused {decision.reason}"
