"""Complaints: abuse reports of feedback loops (RFC 5965, used as RFC 6650 says), Microsoft's JMRP and kin."""

from __future__ import annotations

import re

import msgspec

from mailweir.contracts.events import EventType
from mailweir.mail.bounce_mail import BounceMail, addresses, header_block, received_for
from mailweir.mail.dsn import recipient_of


class Complaint(msgspec.Struct, frozen=True):
    """One report of a feedback loop."""

    type: EventType
    feedback_type: str
    recipient: str | None
    user_agent: str | None
    arrival: str  # Arrival-Date or Received-Date as written


_TYPES = {
    "abuse": EventType.COMPLAINED,
    "complaint": EventType.COMPLAINED,
    "spam": EventType.COMPLAINED,
    "fraud": EventType.COMPLAINED,
    "opt-out": EventType.UNSUBSCRIBED,
    "opt-out-list": EventType.UNSUBSCRIBED,
    "unsubscribe": EventType.UNSUBSCRIBED,
}
"""Feedback-Type -> event. not-spam, auth-failure, dkim-failure, virus, other and unknown types are no
complaint."""

_REDACTED = re.compile(
    r"redacted|undisclosed|\bxxx+|\*\*|hidden|anonymi[sz]ed|removed|user.?deleted", re.IGNORECASE
)
_JMRP = "x-hmxmroriginalrecipient"


def parse_arf(mail: BounceMail) -> list[Complaint]:
    """The complaint a mail carries; empty when it is none."""
    original = header_block(mail.original())
    text = None
    for part in mail.parts:
        if part.kind == "message/feedback-report":
            text = part.text
    if text is None:
        text = _misplaced(mail)
    if text is None:
        return _jmrp(mail, original)
    fields: dict[str, list[str]] = {}
    for block in re.split(r"\n[ \t]*\n", text)[:20]:
        for name, values in header_block(block).items():
            fields.setdefault(name, []).extend(values)
    kind = (fields.get("feedback-type") or [""])[0]
    kind = kind.split(";")[0].strip().lower()
    recipients = [
        address
        for name in (
            "original-rcpt-to",
            "original-recipient",
            "removal-recipient",
            "redacted-address",
        )
        for value in fields.get(name, ())
        if (address := recipient_of(value)) and not _REDACTED.search(address)
    ]
    found: list[str | None] = list(dict.fromkeys(recipients)) or [_of_original(original)]
    agent = (fields.get("user-agent") or [""])[0][:200] or None
    arrival = (fields.get("arrival-date") or fields.get("received-date") or [""])[0]
    event = _TYPES.get(kind, EventType.UNKNOWN)
    return [Complaint(event, kind or "unknown", r, agent, arrival) for r in found[:1000]]


def _misplaced(mail: BounceMail) -> str | None:
    """The report where its part was mislabelled."""
    if mail.report_type != "feedback-report":
        return None
    for part in mail.parts:
        if re.search(r"^feedback-type:", part.text, re.IGNORECASE | re.MULTILINE):
            return part.text
    return None


def _jmrp(mail: BounceMail, original: dict[str, list[str]]) -> list[Complaint]:
    """Microsoft's Junk Mail Reporting Program: the mail as it was, from staff@hotmail.com, with the
    recipient in X-HmXmrOriginalRecipient."""
    values = mail.headers.get(_JMRP) or original.get(_JMRP)
    if not values:
        return []
    found = recipient_of(values[0])
    return [Complaint(EventType.COMPLAINED, "abuse", found, "Microsoft JMRP", mail.header("date"))]


def _of_original(original: dict[str, list[str]]) -> str | None:
    for name in (_JMRP, "x-original-to", "delivered-to", "x-rcpt-to", "to"):
        for address in addresses(original.get(name, [])):
            if not _REDACTED.search(address):
                return address
    taken = received_for(original)
    return None if taken is None or _REDACTED.search(taken) else taken
