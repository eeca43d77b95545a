"""Mailjet's event API (dev.mailjet.com/email/guides/webhooks): one object or an array,
basic auth in the URL."""

from __future__ import annotations

from typing import Any

import msgspec

from mailweir.contracts.events import EventType, Feedback
from reputation.intake.providers.base import (
    Call,
    Webhook,
    address,
    check_shared,
    event_id,
    judged,
    listed,
    message_ids,
    moment,
    simple,
    text,
)

NAME = "mailjet"
TYPES = {
    "sent": EventType.DELIVERED,
    "bounce": EventType.BOUNCED,
    "blocked": EventType.REJECTED,
    "spam": EventType.COMPLAINED,
    "unsub": EventType.UNSUBSCRIBED,
    "open": EventType.OPENED,
    "click": EventType.CLICKED,
}
ERRORS = {
    "user unknown": "invalid_recipient",
    "mailbox inactive": "inactive_mailbox",
    "quota exceeded": "mailbox_full",
    "invalid domain": "invalid_domain",
    "no mail host": "invalid_domain",
    "relay/access denied": "policy_block",
    "greylisted": "greylisted",
    "typofix": "invalid_recipient",
    "bad or empty template": "content_rejected",
    "error in template language": "content_rejected",
    "sender blocked": "reputation_block",
    "content blocked": "spam_content",
    "policy issue": "policy_block",
    "system issue": "server_error",
    "protocol issue": "protocol_error",
    "connection issue": "network_error",
    "preblocked": "policy_block",
    "duplicate in campaign": "policy_block",
}


def read(item: Any, call: Call) -> list[Feedback]:
    """One event."""
    kind = item["event"]
    event_type = TYPES.get(kind, EventType.UNKNOWN)
    error = str(item.get("error") or "").lower()
    if event_type is EventType.BOUNCED and error == "greylisted":
        event_type = EventType.DEFERRED
    at, tags = moment(item.get("time"), call.now)
    event = Feedback(
        event_id=event_id(NAME, kind, item.get("MessageID"), item["email"], item.get("time")),
        type=event_type,
        provider=NAME,
        occurred_at=at,
        recipient=address(item["email"]),
        tags=tags,
        url=text(item.get("url")),
        user_agent=text(item.get("agent"), 500),
        message_ids=message_ids(
            item.get("CustomID"), item.get("Message_GUID"), item.get("MessageID")
        ),
    )
    if event_type in (EventType.BOUNCED, EventType.DEFERRED):
        reply = " ".join(str(item[k]) for k in ("comment", "smtp_reply") if item.get(k))[:2000]
        hard = str(item.get("hard_bounce")).lower() in ("true", "1")
        told = ERRORS.get(error, "invalid_recipient" if hard else "server_error")
        judgement = judged(event, reply=reply or None, told=told, permanent=hard)
        return [msgspec.structs.replace(judgement, reply=reply or text(item.get("error")))]
    return [simple(event, item.get("smtp_reply") or item.get("error"))]


WEBHOOK = Webhook(NAME, check_shared, lambda payload, call: listed(payload), read)
