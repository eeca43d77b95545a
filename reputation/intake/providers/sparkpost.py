"""SparkPost's event webhooks (developers.sparkpost.com/api/webhooks): an array of ``msys``
wrappers, basic auth or a bearer token; ``bounce_class`` numbers as in
support.sparkpost.com/docs/deliverability/bounce-classification-codes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mailweir.contracts.events import BounceClass, EventType, Feedback
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

NAME = "sparkpost"
TYPES = {
    "injection": EventType.QUEUED,
    "delivery": EventType.DELIVERED,
    "delay": EventType.DEFERRED,
    "bounce": EventType.BOUNCED,
    "out_of_band": EventType.BOUNCED,
    "policy_rejection": EventType.REJECTED,
    "generation_rejection": EventType.REJECTED,
    "generation_failure": EventType.FAILED,
    "spam_complaint": EventType.COMPLAINED,
    "initial_open": EventType.OPENED,
    "open": EventType.OPENED,
    "amp_open": EventType.OPENED,
    "amp_initial_open": EventType.OPENED,
    "click": EventType.CLICKED,
    "amp_click": EventType.CLICKED,
    "link_unsubscribe": EventType.UNSUBSCRIBED,
    "list_unsubscribe": EventType.UNSUBSCRIBED,
}
CLASSES = {
    10: "invalid_recipient",
    20: "server_error",
    21: "dns_failure",
    22: "mailbox_full",
    23: "message_too_large",
    24: "network_error",
    25: "policy_block",
    30: "invalid_recipient",
    40: "server_error",
    50: "policy_block",
    51: "spam_content",
    52: "spam_content",
    53: "content_rejected",
    54: "relay_denied",
    70: "server_error",
    1: "unknown",
}
_HARD = (10, 30)
_INBOUND = ("relay_message", "relay_event", "ab_test_event", "ingest_event")
"""Wrappers of what is no delivery of ours: incoming mail, tests, imports."""

SPECIAL = {
    60: (EventType.AUTORESPONDED, "auto_reply"),
    80: (EventType.SUBSCRIBED, None),
    90: (EventType.UNSUBSCRIBED, None),
    100: (EventType.AUTORESPONDED, "challenge"),
}


def items(payload: Any, call: Call) -> list[Any]:
    """The events inside the wrappers; a ping ``[{"msys": {}}]`` holds none."""
    found: list[Any] = []
    for wrapper in listed(payload):
        msys = wrapper.get("msys") if isinstance(wrapper, dict) else None
        if isinstance(msys, dict):
            found.extend(event for kind, event in msys.items() if kind not in _INBOUND)
        else:
            found.append(wrapper)
    return found


def read(item: Any, call: Call) -> list[Feedback]:
    """One event."""
    kind = item["type"]
    event_type = TYPES.get(kind, EventType.UNKNOWN)
    number = int(item.get("bounce_class") or 0)
    category: str | None = CLASSES.get(number)
    if event_type is EventType.BOUNCED and number in SPECIAL:
        event_type, category = SPECIAL[number]
    at, tags = moment(item.get("timestamp"), call.now)
    recipient = address(item.get("raw_rcpt_to") or item["rcpt_to"])
    # relayed and sample events may come without an id of their own
    ident = item.get("event_id") or (item.get("message_id"), kind, recipient, item.get("timestamp"))
    event = Feedback(
        event_id=event_id(NAME, ident),
        type=event_type,
        provider=NAME,
        occurred_at=at,
        recipient=recipient,
        tags=tags + tuple(map(str, item.get("rcpt_tags") or ()))[:20],
        url=text(item.get("target_link_url")),
        user_agent=text(item.get("user_agent"), 500),
        source=text(item.get("sending_ip"), 64),
        remote_host=text(item.get("remote_addr"), 100),
        message_ids=message_ids(item.get("message_id"), item.get("transmission_id")),
    )
    if event_type in (EventType.BOUNCED, EventType.DEFERRED):
        reply = text(item.get("raw_reason")) or text(item.get("reason"))
        permanent = event_type is EventType.BOUNCED and (
            number in _HARD or number not in (20, 21, 22, 24, 40, 70)
        )
        return [judged(event, reply=reply, told=category, permanent=permanent)]
    if event_type is EventType.AUTORESPONDED:
        return [msgspec.structs.replace(event, category=category, cls=BounceClass.NONE)]
    return [simple(event, item.get("raw_reason") or item.get("reason"))]


WEBHOOK = Webhook(NAME, check_shared, items, read)
