"""``X-Mailweir-*`` headers: the fields of a submission, for those who have only headers (S3).

They never leave us. A field of the request wins over the header of the same meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from mailweir.contracts.submit import SubmitRequest
from producer.policy.refusal import Invalid

_TEXT = {
    "pool": "pool",
    "route": "route",
    "bucket": "bucket",
    "campaign": "campaign",
    "engagement": "engagement",
    "risk": "risk",
    "residency": "residency",
    "send-at": "send_at",
    "expires-at": "expires_at",
    "idempotency-key": "idempotency_key",
}
_TRUE = frozenset({"1", "true", "yes", "on"})


def apply(
    request: SubmitRequest, own: Iterable[tuple[str, str]], *, may_route: bool
) -> SubmitRequest:
    """The request completed by its headers (names lower-case, without prefix).

    Pool and route count only for a credential that may route; without it they are ignored, as mail
    programs set headers their users never see. Names nobody knows are ignored too.
    """
    changes: dict[str, Any] = {}
    tags = list(request.tags)
    metadata = dict(request.metadata)
    for name, value in own:
        if name in ("pool", "route") and not may_route:
            continue
        if name in _TEXT:
            field = _TEXT[name]
            if getattr(request, field) is None:
                changes.setdefault(field, _seconds(value) if field.endswith("_at") else value)
        elif name == "priority" and request.priority is None:
            if not value.isdigit():
                raise Invalid("headers.X-Mailweir-Priority", "a whole number from 1 to 10")
            changes.setdefault("priority", int(value[:3]))
        elif name in ("tag", "tags"):
            tags += [tag.strip() for tag in value.split(",") if tag.strip()]
        elif name.startswith("metadata-"):
            metadata.setdefault(name.removeprefix("metadata-"), value)
        elif name == "unsubscribe" and request.unsubscribe is False:
            changes["unsubscribe"] = value.lower() in _TRUE
        elif name == "sandbox":
            changes["sandbox"] = request.sandbox or value.lower() in _TRUE
    return msgspec.structs.replace(request, tags=tuple(tags), metadata=metadata, **changes)


def _seconds(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
