"""What a service says to send: a message and its attachments, checked for shape only.

The server knows the rules; this side turns friendly types into the wire's.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.message import Message as StdMessage
from email.policy import EmailPolicy
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import msgspec

from mailweir.contracts.submit import (
    AttachmentData,
    Recipient,
    Scalar,
    SubmitRequest,
    TemplateData,
)

from .errors import ValidationError


class Address(msgspec.Struct, frozen=True):
    """An address with a name, and its own variables where a template is merged."""

    email: str
    name: str | None = None
    variables: Mapping[str, Scalar] | None = None


class Attachment(msgspec.Struct, frozen=True):
    """A file sent along; with ``content_id`` an inline part that HTML names as ``cid:``."""

    filename: str
    content: bytes
    content_type: str = "application/octet-stream"
    content_id: str | None = None

    @classmethod
    def from_path(
        cls,
        path: str | PathLike[str],
        *,
        content_type: str | None = None,
        content_id: str | None = None,
    ) -> Attachment:
        """Read a file; its type follows from its name."""
        file = Path(fspath(path))
        kind = content_type or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        return cls(file.name, file.read_bytes(), kind, content_id)


class Template(msgspec.Struct, frozen=True):
    """Subject, text and HTML with ``{{ name }}``; HTML values are escaped."""

    subject: str
    text: str | None = None
    html: str | None = None
    attachments: Sequence[Attachment] = ()
    name: str | None = None


To = str | Address
_BROKEN = re.compile("[\r\n](?![\n \t])|\0")  # a break that is no fold; Python < 3.12.5 writes it


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message: exactly one of ``raw``, ``template`` and text/html/attachments.

    ``raw`` is a ready RFC 5322 message, sent as it is. ``template`` is a :class:`Template` or the id of
    a stored one; each recipient then gets a mail of its own. ``unsubscribe=True`` adds our one-click
    link, which marketing and bulk need. Times are aware datetimes."""

    to: To | Sequence[To] = ()
    from_: To | None = None
    cc: Sequence[To] = ()
    bcc: Sequence[To] = ()
    reply_to: Sequence[str] = ()
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    attachments: Sequence[Attachment] = ()
    raw: bytes | None = None
    template: str | Template | None = None
    variables: Mapping[str, Scalar] = {}
    bucket: str | None = None
    priority: int | None = None
    mail_from: str | None = None
    headers: Mapping[str, str] = {}
    tags: Sequence[str] = ()
    metadata: Mapping[str, Scalar] = {}
    campaign: str | None = None
    engagement: str | None = None
    risk: str | None = None
    residency: str | None = None
    send_at: datetime | None = None
    expires_at: datetime | None = None
    idempotency_key: str | None = None
    unsubscribe: bool | str = False
    pool: str | None = None
    route: str | None = None
    sandbox: bool = False
    partial: bool = False

    @classmethod
    def from_email(cls, message: StdMessage, **options: Any) -> Message:
        """A stdlib message as it is; ``options`` are fields of :class:`Message`.

        An :class:`~email.message.EmailMessage` is written once with CRLF line ends. Bcc recipients get
        the mail and are not named in it."""
        return cls(raw=email_bytes(message), **options)


def email_bytes(message: StdMessage) -> bytes:
    """The bytes of a stdlib message with CRLF. Raises :class:`ValidationError` where it has none."""
    for name, value in message.items():
        if _BROKEN.search(f"{name}: {value}"):
            raise ValidationError("a header holds a line break or NUL", field="raw")
    try:
        policy = message.policy
        if isinstance(policy, EmailPolicy):
            # what was parsed stays as it came; what was set is written by the library
            return message.as_bytes(policy=policy.clone(linesep="\r\n", refold_source="none"))
        return message.as_bytes(policy=policy.clone(linesep="\r\n"))
    except (ValueError, LookupError, UnicodeError) as error:
        raise ValidationError(f"cannot be written: {type(error).__name__}", field="raw") from None


def to_request(
    message: Message | StdMessage, options: Mapping[str, Any] | None = None
) -> SubmitRequest:
    """The wire's form of a message; ``options`` overrule its fields."""
    if isinstance(message, StdMessage):
        message = Message.from_email(message, **(options or {}))
    elif options:
        message = msgspec.structs.replace(message, **options)
    m = message
    template = m.template
    return SubmitRequest(
        from_=None if m.from_ is None else _recipient(m.from_),
        to=_recipients((m.to,) if isinstance(m.to, str | Address) else m.to),
        cc=_recipients(m.cc),
        bcc=_recipients(m.bcc),
        reply_to=tuple(m.reply_to),
        subject=m.subject,
        text=m.text,
        html=m.html,
        attachments=_attachments(m.attachments),
        raw=m.raw,
        template=template_data(template) if isinstance(template, Template) else template,
        variables=dict(m.variables),
        bucket=m.bucket,
        priority=m.priority,
        mail_from=m.mail_from,
        headers=dict(m.headers),
        tags=tuple(m.tags),
        metadata=dict(m.metadata),
        campaign=m.campaign,
        engagement=m.engagement,
        risk=m.risk,
        residency=m.residency,
        send_at=_moment("send_at", m.send_at),
        expires_at=_moment("expires_at", m.expires_at),
        idempotency_key=m.idempotency_key,
        unsubscribe=m.unsubscribe,
        pool=m.pool,
        route=m.route,
        sandbox=m.sandbox,
        partial=m.partial,
    )


def template_data(template: Template) -> TemplateData:
    """The wire's form of a template."""
    return TemplateData(
        template.subject,
        template.text,
        template.html,
        _attachments(template.attachments),
        template.name,
    )


def _recipient(item: To) -> str | Recipient:
    if isinstance(item, str):
        return item
    variables = None if item.variables is None else dict(item.variables)
    return Recipient(item.email, item.name, variables)


def _recipients(items: Sequence[To]) -> tuple[str | Recipient, ...]:
    if isinstance(items, str):
        return (items,)
    return tuple(_recipient(item) for item in items)


def _attachments(items: Sequence[Attachment]) -> tuple[AttachmentData, ...]:
    return tuple(AttachmentData(a.filename, a.content, a.content_type, a.content_id) for a in items)


def _moment(field: str, value: datetime | None) -> float | None:
    if value is None:
        return None
    if value.tzinfo is None:
        raise ValidationError("give a time with its zone (datetime.now(UTC))", field=field)
    return value.astimezone(UTC).timestamp()
