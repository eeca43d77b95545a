"""Jobs written down by hand, for explain and simulate: JSON or YAML like the body of the HTTP door."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mailweir.contracts.job import BUCKET_ALIASES, Bucket, Job, JobMeta, Wishes
from mailweir.mail.address import InvalidAddress, parse
from mailweir.mail.providers import lane_of

_META = ("tags", "campaign", "engagement", "risk", "residency", "api_key", "sending_domain")
_CONTENT = frozenset(
    {"subject", "text", "html", "attachments", "template", "variables", "mime", "metadata", "cc"}
    | {"bcc", "reply_to", "idempotency_key", "unsubscribe", "sandbox", "send_at", "raw", "partial"}
)
_JOB = ("tenant", "priority", "attempts", "stay_with", "state", "lane")
KNOWN = frozenset(
    {
        "from",
        "mail_from",
        "to",
        "bucket",
        "type",
        "headers",
        "pool",
        "route",
        "expires_at",
        *_META,
        *_JOB,
    }
)


class BadJob(ValueError):
    """The job file does not say what is needed; the message names the key."""


def jobs_of(body: Any, now: float, *, first_id: int = 1) -> list[Job]:
    """One job per recipient of ``to``. Raises :class:`BadJob`."""
    if not isinstance(body, dict):
        raise BadJob("a job is a mapping with from, to and bucket")
    for key in body:
        if key not in KNOWN and key not in _CONTENT:
            from router.policy.problems import closest

            raise BadJob(f"unknown key {key!r}; {closest(str(key), KNOWN)}")
    headers = {str(k).lower(): str(v) for k, v in dict(body.get("headers") or {}).items()}
    sender = _address(body.get("mail_from") or body.get("from"), "from")
    to = body.get("to")
    recipients = to if isinstance(to, list) else [to]
    if not recipients:
        raise BadJob("to: at least one recipient")
    bucket = _bucket(
        headers.pop("x-mailweir-bucket", None) or body.get("bucket") or body.get("type")
    )
    wishes = Wishes(
        pool=headers.pop("x-mailweir-pool", None) or body.get("pool"),
        route=headers.pop("x-mailweir-route", None) or body.get("route"),
    )
    meta = {key: body[key] for key in _META if body.get(key) is not None}
    if "tags" in meta:
        tags = meta["tags"]
        meta["tags"] = tuple(tags) if isinstance(tags, list) else (str(tags),)
    priority = headers.pop("x-mailweir-priority", None) or body.get("priority") or 5
    out = []
    for i, recipient in enumerate(recipients):
        address = _address(recipient, "to")
        out.append(
            Job(
                id=first_id + i,
                message_id=first_id,
                tenant=str(body.get("tenant") or "default"),
                bucket=bucket,
                priority=int(priority),
                recipient=address,
                mail_from=sender,
                lane=str(body.get("lane") or lane_of(address.rpartition("@")[2])),
                content_id=0,
                state=str(body.get("state") or "accepted"),
                accepted_at=now,
                due_at=now,
                expires_at=_time(body.get("expires_at")),
                attempts=int(body.get("attempts") or 0),
                meta=JobMeta(headers=headers, wishes=wishes, **meta),
                stay_with=body.get("stay_with"),
            )
        )
    return out


def _address(value: Any, key: str) -> str:
    if isinstance(value, dict):
        value = value.get("email") or value.get("address")
    if not isinstance(value, str):
        raise BadJob(f"{key}: an address is needed")
    text = value.rpartition("<")[2].rstrip(">").strip()
    try:
        return parse(text).text
    except InvalidAddress as error:
        raise BadJob(f"{key}: {error}") from None


def _bucket(value: Any) -> Bucket:
    name = str(value or Bucket.TRANSACTIONAL.value)
    try:
        return BUCKET_ALIASES.get(name) or Bucket(name)
    except ValueError:
        known = ", ".join(b.value for b in Bucket)
        raise BadJob(f"bucket: {name!r} is none of {known}") from None


def _time(value: Any) -> float | None:
    """Unix seconds of a number, an ISO time or what YAML made of one."""
    if value is None or isinstance(value, int | float):
        return value
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise BadJob(f"expires_at: {value!r} is not a time; write 2026-08-01T00:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
