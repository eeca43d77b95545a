"""Header lines the door writes: what is visible, what all jobs share, what is one recipient's own (S4).

They are fixed at accept, so that every attempt sends the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from mailweir.contracts.credential import ApiKey
from mailweir.contracts.ids import format_id
from mailweir.contracts.job import Bucket
from mailweir.contracts.submit import SubmitRequest
from mailweir.mail import headers
from mailweir.mail.address import Mailbox
from mailweir.mail.mime_scan import Scanned
from producer.policy.recipients import Target, Targets
from producer.policy.refusal import Invalid

MAX_SUBJECT = 998

UnsubscribeUrl = Callable[[int, str, str, str], str]
"""``(job_id, tenant, bucket, recipient)`` to the one-click URL of a job."""


class Shared(NamedTuple):
    """What all jobs of the message have in common."""

    request: SubmitRequest
    key: ApiKey
    bucket: Bucket
    sender: Mailbox | None
    domain: str  # of Message-IDs
    has_link: bool  # the caller brought List-Unsubscribe


def check_unsubscribe(
    request: SubmitRequest, scanned: Scanned | None, free: list[tuple[str, str]], bucket: Bucket
) -> bool:
    """Whether the caller brought the link. S4: without one marketing and bulk are refused.

    What a reader's program would follow is https or mailto, in a ready message too."""
    if isinstance(request.unsubscribe, str):
        try:
            headers.check_unsubscribe("List-Unsubscribe", request.unsubscribe)
        except headers.InvalidHeader as error:
            raise Invalid("unsubscribe", error.why) from None
        if "<https://" not in request.unsubscribe:
            raise Invalid("unsubscribe", "one-click needs an https link (RFC 8058 3.1)")
        return True
    own = scanned.first("list-unsubscribe") if scanned else None
    if own is not None:
        try:
            headers.check_unsubscribe("List-Unsubscribe", own)
        except headers.InvalidHeader as error:
            raise Invalid("raw.list-unsubscribe", error.why) from None
    names = {f.name for f in scanned.fields} if scanned else {name.lower() for name, _ in free}
    has_link = "list-unsubscribe" in names
    if bucket is Bucket.TRANSACTIONAL or request.unsubscribe:
        return has_link
    if not has_link or "list-unsubscribe-post" not in names:
        raise Invalid(
            "unsubscribe",
            f"{bucket} mail needs one-click unsubscribe (RFC 8058): set unsubscribe to true, or bring "
            "List-Unsubscribe and List-Unsubscribe-Post",
        )
    return has_link


def visible_lines(
    request: SubmitRequest, shared: Shared, targets: Targets, free: list[tuple[str, str]]
) -> list[bytes]:
    """The visible headers of a message built from parts."""
    assert shared.sender is not None
    lines = [headers.address_line("From", [shared.sender])]
    for name in ("To", "Cc"):
        boxes = [box for kind, box in targets.shown if kind == name.lower()]
        if boxes:
            lines.append(headers.address_line(name, boxes))
    if request.reply_to:
        lines.append(headers.line("Reply-To", ", ".join(request.reply_to)))
    if request.subject is not None:
        if len(request.subject) > MAX_SUBJECT:
            raise Invalid("subject", f"longer than {MAX_SUBJECT} characters")
        lines.append(headers.line("Subject", request.subject))
    return lines + [headers.line(name, value) for name, value in free]


def message_lines(
    shared: Shared,
    scanned: Scanned | None,
    message_id: int,
    now: float,
    free: list[tuple[str, str]],
) -> str:
    """Header lines all jobs share, fixed now so that every attempt sends the same bytes."""
    request = shared.request
    personal = request.template is not None
    has = {f.name for f in scanned.fields} if scanned else {name.lower() for name, _ in free}
    lines: list[bytes] = []
    if "date" not in has:
        stamp = datetime.fromtimestamp(int(now), UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
        lines.append(b"Date: " + stamp.encode() + b"\r\n")
    if (scanned is not None and "from" not in has) or personal:
        assert shared.sender is not None
        lines.append(headers.address_line("From", [shared.sender]))
    if "message-id" not in has and not personal:
        lines.append(_message_id(message_id, shared.domain))
    if personal:
        if request.reply_to:
            lines.append(headers.line("Reply-To", ", ".join(request.reply_to)))
        lines += [headers.line(name, value) for name, value in free]
    if "feedback-id" not in has:
        parts = (request.campaign or "", shared.key.tenant, shared.bucket.value, "mailweir")
        text = ":".join(
            "".join(c if c.isascii() and c.isalnum() else "-" for c in p)[:40] for p in parts
        )
        lines.append(b"Feedback-ID: " + text.encode() + b"\r\n")
    if isinstance(request.unsubscribe, str):
        lines.append(headers.line("List-Unsubscribe", request.unsubscribe))
    if (request.unsubscribe or shared.has_link) and "list-unsubscribe-post" not in has:
        lines.append(b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n")
    return headers.join(lines).decode("ascii")


def job_lines(
    shared: Shared, unsubscribe_url: UnsubscribeUrl, job_id: int, target: Target, personal: bool
) -> str:
    """Header lines of one recipient: the reference that leads a report back to the job, its link."""
    name = format_id(job_id)
    lines = [f"X-Mailweir-Ref: {name}\r\n".encode()]
    if personal:
        lines.append(_message_id(job_id, shared.domain))
        try:
            lines.append(headers.address_line("To", [target.box]))
        except headers.InvalidHeader as error:
            raise Invalid(f"{target.field}.name", error.why) from None
    if shared.request.unsubscribe is True and not shared.has_link:
        url = unsubscribe_url(
            job_id, shared.key.tenant, shared.bucket.value, target.box.address.text
        )
        lines.append(headers.fold("List-Unsubscribe", f"<{url}>"))
    return headers.join(lines).decode("ascii")


def _message_id(value: int, domain: str) -> bytes:
    return f"Message-ID: <{format_id(value)}@{domain}>\r\n".encode("ascii")
