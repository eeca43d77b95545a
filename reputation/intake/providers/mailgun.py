"""Mailgun's webhooks (documentation.mailgun.com, Events and Webhooks): HMAC-SHA256 over timestamp and token."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from mailweir.contracts.events import EventType, Feedback
from reputation.intake.providers.base import (
    BadPayload,
    Call,
    Refused,
    Webhook,
    address,
    check_time,
    event_id,
    form_fields,
    judged,
    message_ids,
    moment,
    same,
    simple,
    text,
)

NAME = "mailgun"
TYPES = {
    "accepted": EventType.QUEUED,
    "delivered": EventType.DELIVERED,
    "failed": EventType.BOUNCED,
    "rejected": EventType.REJECTED,
    "opened": EventType.OPENED,
    "clicked": EventType.CLICKED,
    "complained": EventType.COMPLAINED,
    "unsubscribed": EventType.UNSUBSCRIBED,
}


def verify(call: Call) -> str:
    """Raises ``Refused`` unless a key signed timestamp + token; returns the token, which comes once."""
    fields = form_fields(call.body)
    try:
        signature = fields or json.loads(call.body)["signature"]
        stamp, token = str(signature["timestamp"]), str(signature["token"])
        # a subaccount's webhooks are signed with the parent account's key as well
        given = [str(signature["signature"]), str(signature.get("parent-signature") or "")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused("no signature of Mailgun in the body") from None
    check_time(stamp, call.now)
    for secret in call.secrets:
        wanted = hmac.new(secret.encode(), (stamp + token).encode(), hashlib.sha256).hexdigest()
        if any(same(g.lower().encode("utf-8", "replace"), wanted) for g in given):
            return token[:100]
    raise Refused("the signature does not fit")


def items(payload: Any, call: Call) -> list[Any]:
    """The one event of a call."""
    if not isinstance(payload, dict) or not isinstance(payload.get("event-data"), dict):
        raise BadPayload("no event-data object")
    return [payload["event-data"]]


def read(item: Any, call: Call) -> list[Feedback]:
    """An ``event-data`` object."""
    kind = item["event"]
    event_type = TYPES.get(kind, EventType.UNKNOWN)
    temporary = item.get("severity") == "temporary"
    if event_type is EventType.BOUNCED and temporary:
        event_type = EventType.DEFERRED
    if kind == "stored":
        return []  # incoming mail
    detail = item.get("delivery-status") or {}
    headers = (item.get("message") or {}).get("headers") or {}
    # what was rejected before it was split names its recipient in the header alone
    recipient = address(item.get("recipient") or headers.get("to"))
    at, tags = moment(item.get("timestamp"), call.now)
    day = int(at // 86400)  # ids are unique within a day only
    event = Feedback(
        event_id=event_id(NAME, day, item.get("id") or (recipient, kind, at)),
        type=event_type,
        provider=NAME,
        occurred_at=at,
        recipient=recipient,
        tags=tags + tuple(map(str, item.get("tags") or ()))[:20],
        url=text(item.get("url")),
        user_agent=text((item.get("client-info") or {}).get("user-agent"), 500),
        message_ids=message_ids(headers.get("message-id")),
    )
    if event_type not in (EventType.BOUNCED, EventType.DEFERRED):
        return [simple(event, detail.get("message") or (item.get("reject") or {}).get("reason"))]
    soft = str(detail.get("bounce-type")).lower() == "soft"
    words = " ".join(str(detail[k]) for k in ("message", "description") if detail.get(k))
    code = detail.get("code")
    reason = str(item.get("reason", ""))
    told = {
        "suppress-bounce": "invalid_recipient",
        "suppress-complaint": "recipient_refused",
        "suppress-unsubscribe": "recipient_refused",
        "old": "expired",
        "greylisted": "greylisted",
        "espblock": "reputation_block",
    }.get(reason)
    if reason.startswith("suppress-") and not temporary and told:
        words = ""
    if isinstance(code, int) and 400 <= code <= 599 and words and not words.startswith(str(code)):
        words = f"{code} {words}"
    if told is None and isinstance(code, int) and not words:
        words = str(code)
    return [
        judged(
            event,
            reply=words[:2000] or None,
            status=text(detail.get("enhanced-code"), 16),
            told=told or ("server_error" if temporary or soft else None),
            permanent=not (temporary or soft),
        )
    ]


_LEGACY = {"bounced": "failed", "dropped": "failed"}


def from_form(fields: Mapping[str, str]) -> Any:
    """A legacy webhook (form post) in the shape of today's JSON."""
    kind = fields.get("event", "")
    words = fields.get("error") or fields.get("description") or ""
    code = fields.get("code", "")
    return {
        "event-data": {
            "event": _LEGACY.get(kind, kind),
            "severity": "permanent",
            "reason": fields.get("reason", ""),
            "recipient": fields.get("recipient", ""),
            "timestamp": fields.get("timestamp", ""),
            "id": fields.get("token"),
            "url": fields.get("url"),
            "message": {
                "headers": {"message-id": fields.get("Message-Id") or fields.get("message-id")}
            },
            "client-info": {"user-agent": fields.get("user-agent")},
            "delivery-status": {
                "code": int(code) if code.isascii() and code.isdigit() else None,
                "message": words,
            },
        }
    }


WEBHOOK = Webhook(NAME, verify, items, read, from_form)
