"""SendGrid's event webhook (twilio.com/docs/sendgrid/for-developers/tracking-events/event).

Signed with ECDSA P-256 over timestamp + raw body; the secret is the base64 public key SendGrid shows.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from mailweir.contracts.events import EventType, Feedback
from reputation.intake.providers.base import (
    Call,
    Refused,
    Webhook,
    address,
    check_time,
    event_id,
    judged,
    listed,
    message_ids,
    moment,
    simple,
    text,
)

NAME = "sendgrid"
TYPES = {
    "processed": EventType.QUEUED,
    "deferred": EventType.DEFERRED,
    "delivered": EventType.DELIVERED,
    "bounce": EventType.BOUNCED,
    "blocked": EventType.BOUNCED,
    "dropped": EventType.REJECTED,
    "open": EventType.OPENED,
    "click": EventType.CLICKED,
    "spamreport": EventType.COMPLAINED,
    "unsubscribe": EventType.UNSUBSCRIBED,
    "group_unsubscribe": EventType.UNSUBSCRIBED,
    "group_resubscribe": EventType.SUBSCRIBED,
}
CLASSIFICATIONS = {  # bounce_classification, where the reason says nothing
    "invalid address": "invalid_recipient",
    "mailbox unavailable": "mailbox_full",
    "technical": "network_error",
    "content": "spam_content",
    "reputation": "reputation_block",
    "frequency or volume too high": "rate_limited",
    "unclassified": "unknown",
}


def verify(call: Call) -> None:
    """Raises ``Refused`` unless one of the public keys signed timestamp and body."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    stamp = call.header("x-twilio-email-event-webhook-timestamp")
    given = call.header("x-twilio-email-event-webhook-signature")
    if not stamp or not given:
        raise Refused("no signature headers of SendGrid")
    check_time(stamp, call.now)
    try:
        signature = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("the signature is not base64") from None
    for secret in call.secrets:
        body = "".join(line for line in secret.split() if not line.startswith("-----"))
        body = body.replace("PUBLICKEY-----", "").replace("KEY-----", "")
        try:
            key = load_der_public_key(base64.b64decode(body))
        except (ValueError, binascii.Error):
            raise Refused("the configured verification key is not a base64 public key") from None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise Refused("the configured verification key is not an elliptic-curve key")
        try:
            key.verify(signature, stamp.encode() + call.body, ec.ECDSA(SHA256()))
        except InvalidSignature:
            continue
        return
    raise Refused("the signature does not fit")


def read(item: Any, call: Call) -> list[Feedback]:
    """One event of the array; none for what is of the account, not of a mail."""
    kind = item["event"]
    if kind == "account_status_change":
        return []
    event_type = TYPES.get(kind, EventType.UNKNOWN)
    at, tags = moment(item.get("timestamp"), call.now)
    ident = item.get("sg_event_id") or (
        item.get("sg_message_id"),
        item["email"],
        kind,
        item.get("timestamp"),
    )
    categories = item.get("category") or ()
    names = (categories,) if isinstance(categories, str) else tuple(map(str, categories))[:20]
    event = Feedback(
        event_id=event_id(NAME, ident),
        type=event_type,
        provider=NAME,
        occurred_at=at,
        recipient=address(item["email"]),
        tags=tags + names,
        url=text(item.get("url")),
        user_agent=text(item.get("useragent"), 500),
        # sg_message_id is the API's X-Message-Id and a suffix that names their machine
        message_ids=message_ids(
            item.get("smtp-id"), str(item.get("sg_message_id") or "").partition(".")[0]
        ),
    )
    reply = text(item.get("reason")) or text(item.get("response"))
    status = text(item.get("status"), 16)
    if event_type in (EventType.BOUNCED, EventType.DEFERRED):
        soft = event_type is EventType.DEFERRED
        blocked = item.get("type") == "blocked" or kind == "blocked"
        told = CLASSIFICATIONS.get(str(item.get("bounce_classification", "")).lower())
        if told in (None, "unknown"):
            told = "server_error" if soft else "policy_block" if blocked else None
        return [
            judged(event, reply=reply, status=status, told=told, permanent=not (soft or blocked))
        ]
    return [simple(event, reply)]


WEBHOOK = Webhook(NAME, verify, lambda payload, call: listed(payload), read)
