"""A webhook call from its raw bytes to normalised events: bounded, verified, then mapped item by item."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mailweir.contracts.events import Feedback
from reputation.intake.providers import webhook
from reputation.intake.providers.base import (
    UNREADABLE,
    BadPayload,
    Call,
    Partly,
    Refused,
    form_fields,
    shape,
)

__all__ = [
    "MAX_BODY",
    "BadPayload",
    "Refused",
    "Taken",
    "TooLarge",
    "handle",
    "load_json",
    "parse_headers",
]

MAX_BODY = 1024 * 1024
"""Bytes of one call."""

MAX_DEPTH = 40


class TooLarge(BadPayload):
    """The body is over :data:`MAX_BODY`: HTTP 413."""


class Taken(NamedTuple):
    """What a call held: its events, a sentence per item nobody could read, whether it was verified (None:
    nobody asked), the id that may come only once, and the URL that confirms a subscription, not yet
    checked."""

    events: list[Feedback]
    problems: list[str]
    verified: bool | None
    once: str | None
    subscription: str | None = None


def handle(
    provider: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    secret: str | None,
    now: float,
    fetch_certificate: Callable[[str], bytes] | None = None,
    topics: frozenset[str] = frozenset(),
) -> Taken:
    """Verify and map one call. ``secret``: the secrets in force, one a line (a PEM block is one); None
    skips verification. ``now``: real Unix seconds.

    Raises ``UnknownProvider``, ``Refused`` (401), ``TooLarge`` (413) or ``BadPayload`` (400).
    """
    found = webhook(provider)
    if len(body) > MAX_BODY:
        raise TooLarge(f"the body is over {MAX_BODY} bytes")
    lower = {name.lower(): value for name, value in headers.items()}
    secrets = _secrets(secret)
    call = Call(lower, body, secrets, now, fetch_certificate, topics)
    once = None
    if secret is not None:
        if not secrets and found.name != "ses":
            raise Refused("no secret is configured")
        try:
            once = found.verify(call)
        except UnicodeError:
            raise Refused("what should be signed is no Unicode text") from None
    fields = form_fields(body) if found.form is not None else None
    payload = found.form(fields) if found.form is not None and fields else load_json(body)
    events: list[Feedback] = []
    problems: list[str] = []
    for number, item in enumerate(found.items(payload, call)):
        try:
            events.extend(found.read(item, call))
        except Partly as error:
            events.extend(error.events)
            problems.append(f"item {number}: {str(error)[:80]}")
        except KeyError as error:
            problems.append(f"item {number}: no field {str(error)[:80]}")
        except (TypeError, AttributeError):
            problems.append(f"item {number}: {_misshapen(item)}")
        except UNREADABLE as error:
            problems.append(f"item {number}: {str(error)[:80]}")
    wish = found.subscription(payload) if found.subscription is not None else None
    return Taken(events, problems, None if secret is None else True, once, wish)


def _misshapen(item: Any) -> str:
    """A sentence about an item whose values are of other kinds than the relay documents."""
    if isinstance(item, dict) and isinstance(item.get("event"), dict):
        item = item["event"]  # SES, as it came out of SNS
    if not isinstance(item, dict):
        return f"{shape(item)}, where an object was expected"
    fields = ", ".join(f"{str(k)[:24]} {shape(v)}" for k, v in list(item.items())[:6])
    return f"a field is of another kind than documented: {fields}"


def _secrets(secret: str | None) -> tuple[str, ...]:
    if secret is None:
        return ()
    if "-----BEGIN" in secret:
        return (secret.strip(),)
    return tuple(line.strip() for line in secret.splitlines() if line.strip())


def load_json(body: bytes) -> Any:
    """JSON as strict as money: no duplicate keys, no NaN, no infinities, no lone surrogates, at most 40
    levels. Raises :class:`BadPayload`."""
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise BadPayload("the JSON is nested too deeply") from None
    except UnicodeError:
        raise BadPayload("the body is not UTF-8") from None
    except ValueError as error:
        raise BadPayload(f"the body is not acceptable JSON: {str(error)[:100]}") from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise BadPayload("the JSON is nested too deeply")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def parse_headers(data: bytes) -> dict[str, str]:
    """Headers from a file: a JSON object (values texts or lists of them), or ``Name: value`` lines. Raises
    :class:`BadPayload` for JSON that is no such object."""
    text = data.decode("utf-8-sig", "replace").strip()
    if text.startswith("["):
        raise BadPayload("a list, where an object or 'Name: value' lines were expected")
    if text.startswith("{"):
        raw = load_json(text.encode())
        return {
            str(k).lower(): str(v[0] if isinstance(v, list) and v else v) for k, v in raw.items()
        }
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() and " " not in name.strip():
            found[name.strip().lower()] = value.strip()
    return found
