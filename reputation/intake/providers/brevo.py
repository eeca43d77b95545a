"""Brevo's transactional webhooks (developers.brevo.com/docs/transactional-webhooks): basic auth or bearer."""

from __future__ import annotations

from typing import Any

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

NAME = "brevo"
TYPES = {
    "request": EventType.QUEUED,
    "sent": EventType.QUEUED,
    "delivered": EventType.DELIVERED,
    "deferred": EventType.DEFERRED,
    "hard_bounce": EventType.BOUNCED,
    "soft_bounce": EventType.BOUNCED,
    "invalid_email": EventType.BOUNCED,
    "blocked": EventType.REJECTED,
    "error": EventType.FAILED,
    "spam": EventType.COMPLAINED,
    "complaint": EventType.COMPLAINED,
    "unique_opened": EventType.OPENED,
    "opened": EventType.OPENED,
    "proxy_open": EventType.OPENED,
    "unique_proxy_open": EventType.OPENED,
    "loadedbyproxy": EventType.OPENED,
    "click": EventType.CLICKED,
    "unsubscribe": EventType.UNSUBSCRIBED,
    "unsubscribed": EventType.UNSUBSCRIBED,
    "list_addition": EventType.SUBSCRIBED,
}
_NAMES = {  # as the API's settings spell them, and marketing webhooks of old
    "hardbounce": "hard_bounce",
    "softbounce": "soft_bounce",
    "uniqueopened": "unique_opened",
    "invalid": "invalid_email",
    "listaddition": "list_addition",
}
_NO_MAIL = ("contact_deleted", "contact_updated", "inboundemailprocessed")
"""Events of the address book and of incoming mail."""
_TOLD = {
    "hard_bounce": "invalid_recipient",
    "invalid_email": "invalid_recipient",
    "soft_bounce": "server_error",
    "deferred": "server_error",
}


def read(item: Any, call: Call) -> list[Feedback]:
    """One event. ``proxy`` among the tags: fetched by a privacy proxy, not by a reader."""
    if "items" in item and "event" not in item:
        return []  # incoming mail
    kind = str(item["event"]).lower()
    kind = _NAMES.get(kind, kind)
    if kind in _NO_MAIL:
        return []
    if isinstance(item.get("email"), list):  # a marketing list_addition names many
        return [e for one in item["email"][:1000] for e in read({**item, "email": one}, call)]
    event_type = TYPES.get(kind, EventType.UNKNOWN)
    when = next((item[k] for k in ("ts_epoch", "ts_event", "ts", "date") if item.get(k)), None)
    at, tags = moment(when, call.now)
    if "proxy" in kind:
        tags += ("proxy",)
    names = item.get("tags") or ()
    names = (names,) if isinstance(names, str) else tuple(map(str, names))[:20]
    event = Feedback(
        event_id=event_id(
            NAME, item.get("message-id") or item.get("id"), kind, item["email"], when
        ),
        type=event_type,
        provider=NAME,
        occurred_at=at,
        recipient=address(item["email"]),
        tags=tags + names,
        url=text(item.get("link")),
        user_agent=text(item.get("user_agent"), 500),
        source=text(item.get("sending_ip"), 64),
        message_ids=message_ids(item.get("message-id")),
    )
    if event_type in (EventType.BOUNCED, EventType.DEFERRED):
        hard = kind in ("hard_bounce", "invalid_email")
        return [judged(event, reply=text(item.get("reason")), told=_TOLD.get(kind), permanent=hard)]
    return [simple(event, item.get("reason"))]


WEBHOOK = Webhook(NAME, check_shared, lambda payload, call: listed(payload), read)
