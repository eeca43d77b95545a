"""Checks of single fields: bucket, priority, times, labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime

from mailweir.contracts.job import BUCKET_ALIASES, DEFAULT_PRIORITY, Bucket
from mailweir.contracts.submit import Scalar
from producer.policy.refusal import Invalid

MAX_TAGS = 20
MAX_METADATA = 50
MAX_METADATA_BYTES = 8192
MAX_AHEAD = 366 * 86400.0  # seconds a send may be scheduled ahead
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/@+-]{0,127}\Z")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def bucket(value: str | None) -> Bucket:
    """A bucket by its name or an alias (S1); transactional when none is given."""
    if value is None:
        return Bucket.TRANSACTIONAL
    name = value.strip().lower()
    if name in BUCKET_ALIASES:
        return BUCKET_ALIASES[name]
    try:
        return Bucket(name)
    except ValueError:
        raise Invalid("bucket", f"one of {', '.join(Bucket)}") from None


def priority(value: int | None) -> int:
    """1 first to 10; 5 when none is given."""
    if value is None:
        return DEFAULT_PRIORITY
    if not 1 <= value <= 10:
        raise Invalid("priority", "a whole number from 1 (first) to 10")
    return value


def moment(field: str, value: float | str | None) -> float | None:
    """Unix seconds of a number or of ISO 8601 with a zone."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            raise Invalid(field, "Unix seconds, or ISO 8601 as 2026-12-01T09:00:00+01:00") from None
        if parsed.tzinfo is None:
            raise Invalid(field, "an ISO 8601 time needs its zone, such as Z or +01:00")
        return parsed.timestamp()
    if not math.isfinite(value) or value < 0:
        raise Invalid(field, "Unix seconds, finite and not negative")
    return float(value)


def times(
    send_at: float | str | None, expires_at: float | str | None, now: float
) -> tuple[float | None, float | None]:
    """When the message may go and until when, checked against each other and against now."""
    start = moment("send_at", send_at)
    end = moment("expires_at", expires_at)
    if start is not None and start > now + MAX_AHEAD:
        raise Invalid("send_at", "at most a year ahead")
    if end is not None and end <= max(now, start or now):
        raise Invalid("expires_at", "lies before the message could be sent")
    return start, end


def label(field: str, value: str | None, limit: int = 128) -> str | None:
    """A short name: letters, digits and a few signs."""
    if value is None or value == "":
        return None
    if len(value) > limit or not _LABEL.match(value):
        raise Invalid(field, f"1 to {limit} letters, digits, space and ._:/@+-")
    return value


def tags(values: Sequence[str]) -> tuple[str, ...]:
    """At most 20 labels, each once."""
    if len(values) > MAX_TAGS:
        raise Invalid("tags", f"at most {MAX_TAGS}")
    found = [label(f"tags[{i}]", value) for i, value in enumerate(values)]
    return tuple(dict.fromkeys(tag for tag in found if tag))


def metadata(values: Mapping[str, Scalar]) -> dict[str, str]:
    """Key to text, kept with the jobs and given back with every event."""
    if len(values) > MAX_METADATA:
        raise Invalid("metadata", f"at most {MAX_METADATA} entries")
    out: dict[str, str] = {}
    for key, value in values.items():
        text = "" if value is None else str(value)
        if not key or len(key) > 64 or _CONTROL.search(key) or _CONTROL.search(text):
            raise Invalid("metadata", "keys of 1 to 64 characters, no control characters")
        out[key] = text
    if sum(len(k.encode()) + len(v.encode()) for k, v in out.items()) > MAX_METADATA_BYTES:
        raise Invalid("metadata", f"larger than {MAX_METADATA_BYTES} bytes")
    return out


def idempotency_key(value: str | None) -> str | None:
    """The submitter's name for this call: 1 to 256 printable ASCII characters."""
    if value is None:
        return None
    if not 1 <= len(value) <= 256 or not value.isascii() or not value.isprintable():
        raise Invalid("idempotency_key", "1 to 256 printable ASCII characters")
    return value


def engagement(value: str | None) -> str:
    """``high`` or ``normal``."""
    if value in (None, "", "normal"):
        return "normal"
    if value != "high":
        raise Invalid("engagement", "high or normal")
    return value
