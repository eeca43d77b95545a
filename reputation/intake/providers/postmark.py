"""Postmark's webhooks (postmarkapp.com/developer/webhooks): basic auth in the URL, bounce types documented."""

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

NAME = "postmark"
TYPES = {
    "Delivery": EventType.DELIVERED,
    "Bounce": EventType.BOUNCED,
    "SpamComplaint": EventType.COMPLAINED,
    "Open": EventType.OPENED,
    "Click": EventType.CLICKED,
}
BOUNCES: dict[
    str, tuple[EventType, str | None]
] = {  # Type -> event, category where the words say nothing
    "HardBounce": (EventType.BOUNCED, "invalid_recipient"),
    "Transient": (EventType.DEFERRED, "server_error"),
    "Unsubscribe": (EventType.UNSUBSCRIBED, None),
    "Subscribe": (EventType.SUBSCRIBED, None),
    "AutoResponder": (EventType.AUTORESPONDED, "auto_reply"),
    "AddressChange": (EventType.AUTORESPONDED, "auto_reply"),
    "DnsError": (EventType.DEFERRED, "dns_failure"),
    "SpamNotification": (EventType.BOUNCED, "spam_content"),
    "OpenRelayTest": (EventType.UNKNOWN, None),
    "Unknown": (EventType.BOUNCED, "unknown"),
    "SoftBounce": (EventType.BOUNCED, "server_error"),
    "VirusNotification": (EventType.BOUNCED, "virus"),
    "ChallengeVerification": (EventType.AUTORESPONDED, "challenge"),
    "BadEmailAddress": (EventType.BOUNCED, "invalid_recipient"),
    "SpamComplaint": (EventType.COMPLAINED, None),
    "ManuallyDeactivated": (EventType.REJECTED, None),
    "Unconfirmed": (EventType.REJECTED, None),
    "Blocked": (EventType.BOUNCED, "policy_block"),
    "SMTPApiError": (EventType.FAILED, None),
    "InboundError": (EventType.UNKNOWN, None),
    "DMARCPolicy": (EventType.BOUNCED, "auth_failure"),
    "TemplateRenderingFailed": (EventType.FAILED, None),
}
_HARD = ("HardBounce", "BadEmailAddress")


def read(item: Any, call: Call) -> list[Feedback]:
    """One record."""
    kind = item.get("RecordType", "Bounce" if "Type" in item else "")
    if kind == "Inbound" or "FromFull" in item:
        return []  # the inbound hook at the wrong path
    bounce_type = str(item.get("Type", ""))
    event_type = TYPES.get(kind, EventType.UNKNOWN)
    told: str | None = None
    if kind in ("Bounce", "SpamComplaint"):
        event_type, told = BOUNCES.get(bounce_type, (event_type, None))
    if kind == "SubscriptionChange":
        off = bool(item.get("SuppressSending"))
        reasons = {"HardBounce": EventType.BOUNCED, "SpamComplaint": EventType.COMPLAINED}
        reason = str(item.get("SuppressionReason"))
        event_type = reasons.get(reason, EventType.UNSUBSCRIBED) if off else EventType.SUBSCRIBED
        told = "invalid_recipient" if event_type is EventType.BOUNCED else None
        bounce_type = "HardBounce" if told else ""
    when = next(
        (item[k] for k in ("BouncedAt", "DeliveredAt", "ReceivedAt", "ChangedAt") if k in item),
        None,
    )
    at, tags = moment(when, call.now)
    recipient = address(item.get("Email") or item.get("Recipient"))
    ident = item.get("ID") or f"{item.get('MessageID')}:{recipient}:{when}"
    tag = text(item.get("Tag"), 100)
    event = Feedback(
        event_id=event_id(NAME, kind, ident),
        type=event_type,
        provider=NAME,
        occurred_at=at,
        recipient=recipient,
        tags=tags + ((tag,) if tag else ()),
        url=text(item.get("OriginalLink")),
        user_agent=text(item.get("UserAgent"), 500),
        message_ids=message_ids(item.get("MessageID")),
    )
    if event_type in (EventType.BOUNCED, EventType.DEFERRED):
        reply = text(item.get("Details")) or text(item.get("Description"))
        return [
            judged(
                event,
                reply=reply,
                told=told,
                permanent=bounce_type in _HARD
                or told not in ("server_error", "dns_failure", "unknown"),
            )
        ]
    if event_type is EventType.AUTORESPONDED:
        return [msgspec.structs.replace(event, category=told, cls=BounceClass.NONE)]
    return [simple(event, item.get("Details"))]


WEBHOOK = Webhook(NAME, check_shared, lambda payload, call: listed(payload), read)
