"""A snapshot file: the state of the world that ``route explain`` and ``policy simulate`` decide in.

Read strictly: a misspelt key would mean a healthy world, and a wrong answer with exit 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mailweir.contracts.job import Bucket
from mailweir.contracts.snapshot import FastPath, FastState, PathState, Snapshot
from router.policy.problems import closest

KEYS = {
    "version": "a whole number",
    "created_at": "a time in Unix seconds",
    "policy_version": "a whole number",
    "paths": '"source|provider|bucket": {score, weight, state, cap_day, cap_hour, until ...}',
    "paused": '"source:x", "pool:x", "bucket:x", "provider:x" or "tenant:x": until, Unix seconds',
    "fast": '"source|provider": {rate, breaker, open_until, used_day, used_hour, available_at}',
    "zones": "domain: geo zone",
    "providers": "domain: provider",
    "suppressed": "a list of addresses",
    "unreached": "queue: [sources none of its live workers reaches]",
}
STATES = ("cold", "warming", "warm", "slowed", "probation", "suspended", "recovering", "paused")
NAMED = {2: "source|provider", 3: "source|provider|bucket"}
BREAKERS = ("closed", "open", "half_open")


class BadWorld(ValueError):
    """Something in the file is not what it should be; the text names the key and what would be right."""


def read(body: Any, now: float) -> dict[str, Any]:
    """What the file says, or a world where all is well for what it leaves out. Raises :class:`BadWorld`."""
    if not isinstance(body, dict):
        raise BadWorld(f"a snapshot is a mapping with {', '.join(sorted(KEYS))}")
    for key in body:
        if key not in KEYS:
            raise BadWorld(f"unknown key {key!r}; {closest(str(key), KEYS)}")

    def part(name: str, kind: Any, default: Any) -> Any:
        value = body.get(name)
        try:
            return default if value is None else msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as error:
            raise BadWorld(f"{name}: {error}; write {KEYS[name]}") from error

    return {
        "snapshot": Snapshot(
            version=part("version", int, 0),
            created_at=part("created_at", float, now),
            policy_version=part("policy_version", int, 0),
            paths=_states(part("paths", dict[str, dict[str, Any]], {}), "paths", PathState, 3),
            paused=part("paused", dict[str, float], {}),
        ),
        "fast": FastState(
            0, _states(part("fast", dict[str, dict[str, Any]], {}), "fast", FastPath, 2)
        ),
        "zones": part("zones", dict[str, str], {}),
        "providers": part("providers", dict[str, str], {}),
        "suppressed": part("suppressed", list[str], []),
        "unreached": part("unreached", dict[str, frozenset[str]], {}),
    }


def _states(
    found: Mapping[str, dict[str, Any]], name: str, kind: Any, parts: int
) -> dict[str, Any]:
    """The states of paths, each key and value checked."""
    out = {}
    fields = kind.__struct_fields__
    for key, values in found.items():
        place = f"{name}.{key}"
        pieces = key.split("|")
        if len(pieces) != parts or not all(pieces):
            raise BadWorld(f"{place}: a path is named {NAMED[parts]}")
        if parts == 3 and pieces[2] not in set(Bucket):
            raise BadWorld(
                f"{place}: {pieces[2]!r} is not a bucket; {closest(pieces[2], map(str, Bucket))}"
            )
        for field in values:
            if field not in fields:
                raise BadWorld(f"{place}: unknown key {field!r}; {closest(str(field), fields)}")
        try:
            state = out[key] = msgspec.convert(values, kind, strict=False)
        except msgspec.ValidationError as error:
            raise BadWorld(f"{place}: {error}") from error
        if isinstance(state, PathState):
            _one_of(place, "state", state.state, STATES)
            if not (0 <= state.score <= 1 and 0 <= state.weight <= 2):
                raise BadWorld(f"{place}: score is between 0 and 1, weight between 0 and 2")
        else:
            _one_of(place, "breaker", state.breaker, BREAKERS)
    return out


def _one_of(place: str, name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BadWorld(f"{place}.{name}: {value!r} is none of {', '.join(known)}")
