"""Amazon SES events by SNS (docs.aws.amazon.com/ses,
"Examples of event data that Amazon SES publishes to SNS")."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from mailweir.contracts.events import EventType, Feedback
from reputation.intake.providers import sns
from reputation.intake.providers.base import (
    MAX_RECIPIENTS,
    UNREADABLE,
    BadPayload,
    Call,
    Partly,
    Webhook,
    address,
    digest,
    event_id,
    judged,
    message_ids,
    moment,
    simple,
    text,
)

NAME = "ses"
TYPES = {
    "Send": EventType.SENT,
    "Delivery": EventType.DELIVERED,
    "DeliveryDelay": EventType.DEFERRED,
    "Bounce": EventType.BOUNCED,
    "Complaint": EventType.COMPLAINED,
    "Reject": EventType.REJECTED,
    "Rendering Failure": EventType.FAILED,
    "RenderingFailure": EventType.FAILED,
    "Open": EventType.OPENED,
    "Click": EventType.CLICKED,
    "Subscription": EventType.UNSUBSCRIBED,
}
SUBTYPES: dict[str, str | None] = {
    "General": None,
    "NoEmail": "invalid_recipient",
    "Suppressed": "invalid_recipient",
    "OnAccountSuppressionList": "invalid_recipient",
    "MailboxFull": "mailbox_full",
    "MessageTooLarge": "message_too_large",
    "ContentRejected": "content_rejected",
    "AttachmentRejected": "content_rejected",
    "CustomTimeoutExceeded": "expired",
    "UnsubscribedRecipient": "recipient_refused",
}
NO_COMPLAINT = ("not-spam", "auth-failure", "virus")
"""Values of complaintFeedbackType that are no complaint of a reader (RFC 5965 7.3)."""

DELAYS = {
    "InternalFailure": "server_error",
    "General": "server_error",
    "MailboxFull": "mailbox_full",
    "SpamDetected": "spam_content",
    "RecipientServerError": "server_error",
    "IPFailure": "reputation_block",
    "TransientCommunicationFailure": "network_error",
    "BYOIPHostNameLookupUnavailable": "dns_failure",
    "Undetermined": "server_error",
    "SendingDeferral": "server_error",
}


def items(payload: Any, call: Call) -> list[Any]:
    """The SES event inside the SNS message; a bare SES event is taken too (raw message delivery)."""
    if not isinstance(payload, dict):
        raise BadPayload("not an object")
    if payload.get("Type") in ("SubscriptionConfirmation", "UnsubscribeConfirmation"):
        return []
    if "Message" not in payload:
        detail = payload.get("detail")  # as EventBridge wraps it
        return [{"event": detail if isinstance(detail, dict) else payload, "id": None}]
    inner = payload["Message"]  # a text; what passed it on may have read it already
    if not isinstance(inner, dict):
        try:
            inner = json.loads(inner)
        except (ValueError, TypeError, RecursionError):
            return []  # SES' own "Successfully validated SNS topic" is plain text
    return [{"event": inner, "id": payload.get("MessageId")}]


def read(item: Any, call: Call) -> list[Feedback]:
    """One SES event: one record per recipient it names."""
    event = item["event"]
    kind = event.get("eventType") or event.get("notificationType")
    if kind == "AmazonSnsSubscriptionSucceeded":
        return []
    event_type = TYPES.get(kind, EventType.UNKNOWN)
    mail = event.get("mail") or {}
    key = _DETAIL.get(str(kind), str(kind).lower())
    detail = event.get(key) or {}
    at, tags = moment(detail.get("timestamp") or mail.get("timestamp"), call.now)
    ident = item["id"] or detail.get("feedbackId") or mail.get("messageId") or digest(event)
    common = Feedback(
        event_id="",
        type=event_type,
        provider=NAME,
        occurred_at=at,
        tags=tags,
        url=text(detail.get("link")),
        user_agent=text(detail.get("userAgent"), 500),
        remote_host=text(detail.get("remoteMtaIp") or detail.get("reportingMTA"), 255),
        message_ids=_ids(mail),
    )
    found: list[Feedback] = []
    wrong: list[Exception] = []
    for number, row in enumerate(_recipients(str(kind), detail, mail)):
        name = event_id(NAME, ident, kind, number)
        try:
            record = msgspec.structs.replace(
                common, event_id=name, recipient=address(row["emailAddress"])
            )
            words = text(row.get("diagnosticCode"))
            found.append(_completed(record, detail, text(row.get("status"), 16), words))
        except UNREADABLE as error:
            wrong.append(error)
    if wrong:
        raise Partly(found, f"recipient: {wrong[0]}")
    return found


_DETAIL = {
    "DeliveryDelay": "deliveryDelay",
    "Rendering Failure": "failure",
    "RenderingFailure": "failure",
}
_NAMED = {
    "Bounce": "bouncedRecipients",
    "Complaint": "complainedRecipients",
    "DeliveryDelay": "delayedRecipients",
}


def _recipients(kind: str, detail: Any, mail: Any) -> list[Any]:
    """Whom the event is about. Raises ``ValueError`` for a bounce or complaint of a mail to several that
    names none of them, the others have done nothing; and for more than any mail of SES has."""
    rows = detail.get(_NAMED.get(kind, "")) or []
    plain = detail.get("recipients") or mail.get("destination") or []
    if not isinstance(rows, list) or not isinstance(plain, list):
        raise TypeError("the recipients are no list")
    if max(len(rows), len(plain)) > MAX_RECIPIENTS:
        raise ValueError(f"more than {MAX_RECIPIENTS} recipients")
    if rows:
        return rows
    if kind in _NAMED and len(plain) > 1:
        raise ValueError("names none of several recipients")
    return [{"emailAddress": recipient} for recipient in plain]


def _ids(mail: Any) -> tuple[str, ...]:
    """SES' own id and, where the topic is told to send headers, ours."""
    ours = [
        header.get("value")
        for header in mail.get("headers") or ()
        if str(header.get("name")).lower() in ("x-mailweir-ref", "message-id")
    ]
    common = (mail.get("commonHeaders") or {}).get("messageId")
    return message_ids(*ours, common, mail.get("messageId"))


def _completed(record: Feedback, detail: Any, status: str | None, words: str | None) -> Feedback:
    if record.type is EventType.BOUNCED:
        hard = detail.get("bounceType") == "Permanent"
        sub = str(detail.get("bounceSubType"))
        told = SUBTYPES.get(sub) or ("invalid_recipient" if hard else "server_error")
        if sub == "UnsubscribedRecipient":  # SES' own words and status 5.1.1: the mailbox is fine
            return msgspec.structs.replace(
                judged(record, reply=None, told=told, permanent=hard), reply=words, status=status
            )
        if sub in ("Suppressed", "OnAccountSuppressionList"):
            words = words or "Address is on the suppression list"
        return judged(record, reply=words, status=status, told=told, permanent=hard)
    if record.type is EventType.DEFERRED:
        told = DELAYS.get(str(detail.get("delayType")), "server_error")
        return judged(record, reply=words, status=status, told=told, permanent=False)
    said = detail.get("complaintFeedbackType")
    if record.type is EventType.COMPLAINED and said in NO_COMPLAINT:
        return simple(msgspec.structs.replace(record, type=EventType.UNKNOWN, category=said))
    if record.type is EventType.UNSUBSCRIBED and not _opted_out(detail):
        return simple(msgspec.structs.replace(record, type=EventType.SUBSCRIBED))
    said = ("smtpResponse", "reason", "errorMessage")  # of Delivery, Reject, Rendering Failure
    return simple(record, next((detail[name] for name in said if detail.get(name)), None))


def _opted_out(detail: Any) -> bool:
    """Whether a Subscription event takes leave, of everything or of a topic; without preferences it does."""
    chosen = detail.get("newTopicPreferences")
    if not isinstance(chosen, dict):
        return True
    topics = chosen.get("topicSubscriptionStatus") or ()
    return bool(chosen.get("unsubscribeAll")) or any(
        t.get("subscriptionStatus") == "OptOut" for t in topics
    )


WEBHOOK = Webhook(NAME, sns.verify, items, read, subscription=sns.subscription)
