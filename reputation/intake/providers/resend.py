"""Resend's webhooks (resend.com/docs/dashboard/webhooks), signed the Svix way
(docs.svix.com, Standard Webhooks)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Any

import msgspec

from mailweir.contracts.events import EventType, Feedback
from reputation.intake.providers.base import (
    MAX_RECIPIENTS,
    Call,
    Partly,
    Refused,
    Webhook,
    address,
    check_time,
    digest,
    event_id,
    judged,
    message_ids,
    moment,
    same,
    simple,
    text,
)

NAME = "resend"
TYPES = {
    "email.sent": EventType.SENT,
    "email.scheduled": EventType.QUEUED,
    "email.delivered": EventType.DELIVERED,
    "email.delivery_delayed": EventType.DEFERRED,
    "email.bounced": EventType.BOUNCED,
    "email.complained": EventType.COMPLAINED,
    "email.opened": EventType.OPENED,
    "email.clicked": EventType.CLICKED,
    "email.failed": EventType.FAILED,
    "email.suppressed": EventType.REJECTED,
}
_SUBTYPES = {
    "general": None,
    "noemail": "invalid_recipient",
    "suppressed": "invalid_recipient",
    "onaccountsuppressionlist": "invalid_recipient",
    "mailboxfull": "mailbox_full",
    "messagetoolarge": "message_too_large",
    "contentrejected": "content_rejected",
    "attachmentrejected": "content_rejected",
}


def verify(call: Call) -> str:
    """Raises ``Refused`` unless a secret signed ``id.timestamp.body``; returns the id, which comes once."""
    ident = call.header("svix-id") or call.header("webhook-id")
    stamp = call.header("svix-timestamp") or call.header("webhook-timestamp")
    given = call.header("svix-signature") or call.header("webhook-signature")
    if not ident or not stamp or not given:
        raise Refused("no svix-id, svix-timestamp, svix-signature headers")
    check_time(stamp, call.now)
    signed = f"{ident}.{stamp}.".encode() + call.body
    for secret in call.secrets:
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"))
        except (binascii.Error, ValueError):
            raise Refused("the configured secret is not whsec_ and base64") from None
        wanted = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        for candidate in given.split()[:10]:
            version, _, signature = candidate.partition(",")
            if version == "v1" and same(signature.encode("utf-8", "replace"), wanted):
                return ident[:100]
    raise Refused("the signature does not fit")


def items(payload: Any, call: Call) -> list[Any]:
    """The one event of a call."""
    return [payload]


def read(item: Any, call: Call) -> list[Feedback]:
    """One event; one record per recipient."""
    kind, data = item["type"], item["data"]
    event_type = TYPES.get(kind, EventType.UNKNOWN)
    if not str(kind).startswith("email.") or kind == "email.received":
        return []  # domains, contacts, incoming mail
    at, tags = moment(item.get("created_at"), call.now)
    ident = call.header("svix-id") or call.header("webhook-id") or data.get("email_id")
    ident = ident or digest(item)
    bounce = data.get("bounce") or {}
    found: list[Feedback] = []
    to = data["to"]
    names = [to] if isinstance(to, str) else list(to)
    if len(names) > MAX_RECIPIENTS:
        raise ValueError(f"more than {MAX_RECIPIENTS} recipients")
    wrong: list[Exception] = []
    for number, name in enumerate(names):
        try:
            recipient = address(name)
        except ValueError as error:
            wrong.append(error)
            continue
        event = Feedback(
            event_id=event_id(NAME, ident, kind, number),
            type=event_type,
            provider=NAME,
            occurred_at=at,
            recipient=recipient,
            tags=tags,
            url=text((data.get("click") or {}).get("link")),
            user_agent=text((data.get("click") or {}).get("userAgent"), 500),
            message_ids=message_ids(data.get("email_id"), data.get("message_id")),
        )
        if event_type in (EventType.BOUNCED, EventType.DEFERRED):
            hard = event_type is EventType.BOUNCED and _permanent(bounce)
            sub = _SUBTYPES.get(str(bounce.get("subType", "")).replace(" ", "").lower())
            told = sub or ("invalid_recipient" if hard else "server_error")
            diagnostic = bounce.get("diagnosticCode")
            words = " ".join(map(str, diagnostic)) if isinstance(diagnostic, list) else diagnostic
            event = judged(event, reply=text(words), told=told, permanent=hard)
            event = msgspec.structs.replace(
                event,
                reply=event.reply or text(bounce.get("message")),
                # which of several recipients it was is not said
                suppress=event.suppress if len(names) == 1 else None,
            )
        else:
            why = data.get("failed") or data.get("suppressed") or {}
            event = simple(event, why.get("reason") or why.get("message"))
        found.append(event)
    if wrong:
        raise Partly(found, f"recipient: {wrong[0]}")
    return found


def _permanent(bounce: Any) -> bool:
    """Whether a bounce is final; before there was a type, its message alone said so."""
    kind = bounce.get("type")
    if kind is not None:
        return str(kind).lower() == "permanent"
    return "sent a hard bounce" in str(bounce.get("message"))


WEBHOOK = Webhook(NAME, verify, items, read)
