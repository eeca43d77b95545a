"""What a service asks for: one call of a door, as JSON over HTTP and in the ingress queue alike.

Unknown fields are refused, so that a mistyped ``idempotency_kye`` cannot pass unnoticed and nobody sets
what only we decide. Bytes (``raw``, attachments) travel as base64.
"""

from __future__ import annotations

from typing import Any

import msgspec

Scalar = str | int | float | bool | None


class Recipient(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One recipient; ``variables`` are its own values for a template, above the message's."""

    email: str
    name: str | None = None
    variables: dict[str, Scalar] | None = None


class AttachmentData(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A file sent along; with ``content_id`` an inline part that HTML names as ``cid:``."""

    filename: str
    content: bytes
    content_type: str = "application/octet-stream"
    content_id: str | None = None


class TemplateData(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A template: ``{{ name }}`` in subject, text and html, escaped in html."""

    subject: str
    text: str | None = None
    html: str | None = None
    attachments: tuple[AttachmentData, ...] = ()
    name: str | None = None  # for people; stored templates only


class SubmitRequest(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    rename={"from_": "from"},
):
    """A message as submitted (S1). Exactly one of ``raw``, ``template`` and text/html/attachments."""

    from_: str | Recipient | None = None  # header From; with raw: the default reverse-path
    to: tuple[str | Recipient, ...] = ()
    cc: tuple[str | Recipient, ...] = ()
    bcc: tuple[str | Recipient, ...] = ()
    reply_to: tuple[str, ...] = ()
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    attachments: tuple[AttachmentData, ...] = ()
    raw: bytes | None = None  # a ready RFC 5322 message, sent as it is
    template: str | TemplateData | None = None  # id of a stored one, or the template itself
    variables: dict[str, Scalar] = msgspec.field(default_factory=dict)
    bucket: str | None = None  # transactional | marketing | bulk; notification, system
    priority: int | None = None  # 1 first .. 10, default 5
    mail_from: str | None = None  # RFC 5321 reverse-path before VERP; default: From's address
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    tags: tuple[str, ...] = ()
    metadata: dict[str, Scalar] = msgspec.field(default_factory=dict)
    campaign: str | None = None
    engagement: str | None = None  # high | normal
    risk: str | None = None
    residency: str | None = None
    send_at: float | str | None = None  # Unix seconds or ISO 8601 with zone
    expires_at: float | str | None = None
    idempotency_key: str | None = None
    unsubscribe: bool | str = False  # True: our one-click link; text: own List-Unsubscribe value
    pool: str | None = None  # wishes: honoured for credentials with the scope "route"
    route: str | None = None
    sandbox: bool = False
    partial: bool = False  # True: bad recipients are reported as refused, the others accepted


class TemplateStored(msgspec.Struct, frozen=True):
    """Answer to a stored template."""

    id: str
    variables: tuple[str, ...]


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """RFC 9457 problem, the body of every refusal. ``field`` is a path such as ``to[2]``."""

    title: str
    status: int
    code: str
    detail: str = ""
    field: str | None = None
    type: str = "about:blank"
    request_id: str | None = None


class BatchResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a batch's answer: what the item alone would have been answered."""

    index: int
    status: int
    answer: Any = None  # Accepted, when status is 202
    problem: Problem | None = None


class JobView(msgspec.Struct, omit_defaults=True):
    """A job as its tenant sees it. Times in Unix seconds."""

    id: str
    message_id: str
    recipient: str
    state: str
    bucket: str
    priority: int
    attempts: int
    accepted_at: float
    due_at: float | None = None
    expires_at: float | None = None
    reason: str | None = None
    campaign: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = {}


class MessageView(msgspec.Struct):
    """A message with its jobs and how many are in each state."""

    id: str
    states: dict[str, int]
    jobs: list[JobView]


class Cancelled(msgspec.Struct):
    """How many jobs were taken back in time."""

    id: str
    cancelled: int


class Published(msgspec.Struct, frozen=True):
    """A message in the ingress queue: published, not yet accepted.

    ``body`` is the JSON of a :class:`SubmitRequest` as text; ``mac`` is made over key id, time and body
    (:func:`mailweir.contracts.credential.sign`), so nobody with broker access alone can submit.
    """

    key: str  # id of the API key
    at: float  # real Unix seconds at publication
    id: str  # made by the publisher: idempotency key where the request has none
    body: str
    mac: str
