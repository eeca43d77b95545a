"""The request each ESP's API wants for an envelope. Pure but for the time SigV4 signs."""

from __future__ import annotations

import base64
import email
import email.policy
import json
from collections.abc import Callable
from email.message import EmailMessage
from urllib.parse import urlsplit

import httpx

from mailweir.contracts.policy import Source
from mailweir.plumbing import sigv4
from workers.delivery.types import Envelope

# SendGrid sets these itself and refuses them (docs.sendgrid.com, "headers")
_SENDGRID_OWN = frozenset({
    "x-sg-id", "x-sg-eid", "received", "dkim-signature", "content-type", "to", "from", "subject",
    "content-transfer-encoding", "reply-to", "cc", "bcc", "mime-version", "date", "message-id",
})  # fmt: skip


class CannotSend(Exception):
    """The source's settings or the message do not fit this API; one line why."""


def base_url(source: Source) -> str:
    """The API's base; ``source.host`` may be a host, or an URL (plain http on loopback only)."""
    default = {
        "ses": f"email.{source.options.get('region', 'us-east-1')}.amazonaws.com",
        "sendgrid": "api.sendgrid.com",
        "mailgun": "api.mailgun.net",
    }[source.kind]
    host = source.host or default
    return host.rstrip("/") if "://" in host else f"https://{host}"


def _checked(source: Source) -> str:
    base = base_url(source)
    parts = urlsplit(base)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise CannotSend("the API's credentials go over https only")
    return base


def ses(source: Source, secret: str, envelope: Envelope) -> httpx.Request:
    """SES v2 SendEmail with raw content; ``auth.username`` is the access key's id."""
    url = f"{_checked(source)}/v2/email/outbound-emails"
    document: dict[str, object] = {
        "Destination": {"ToAddresses": [envelope.rcpt]},
        "Content": {"Raw": {"Data": base64.b64encode(envelope.data).decode()}},
    }
    if envelope.mail_from:
        document["FeedbackForwardingEmailAddress"] = envelope.mail_from
    if "configuration_set" in source.options:
        document["ConfigurationSetName"] = source.options["configuration_set"]
    body = json.dumps(document).encode()
    assert source.auth is not None
    headers = sigv4.sign(
        "POST",
        url,
        {"Content-Type": "application/json"},
        body,
        service="ses",
        region=str(source.options.get("region", "us-east-1")),
        by=sigv4.Credentials(source.auth.username, secret),
    )
    return httpx.Request("POST", url, headers=headers, content=body)


def mailgun(source: Source, secret: str, envelope: Envelope) -> httpx.Request:
    """Mailgun ``messages.mime``; ``options.domain`` is the domain known to Mailgun."""
    domain = source.options.get("domain")
    if not domain:
        raise CannotSend("a mailgun source needs options.domain")
    return httpx.Request(
        "POST",
        f"{_checked(source)}/v3/{domain}/messages.mime",
        headers={"Authorization": f"Basic {base64.b64encode(f'api:{secret}'.encode()).decode()}"},
        data={"to": envelope.rcpt},
        files={"message": ("message.eml", envelope.data, "message/rfc822")},
    )


def sendgrid(source: Source, secret: str, envelope: Envelope) -> httpx.Request:
    """SendGrid ``v3/mail/send``: it takes no MIME, so the parts are handed over as JSON and SendGrid
    writes (and signs) a message of its own."""
    message = email.message_from_bytes(envelope.data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    senders = list(message["From"].addresses) if message["From"] else []
    if len(senders) != 1:
        raise CannotSend("SendGrid needs exactly one From address")
    (sender,) = senders
    content, attachments = _parts(message)
    if not content:
        raise CannotSend("SendGrid needs a text or HTML part")
    headers = {
        name: str(value) for name, value in message.items() if name.lower() not in _SENDGRID_OWN
    }
    person: dict[str, object] = {"to": [{"email": envelope.rcpt}]}
    if headers:
        person["headers"] = headers
    document: dict[str, object] = {
        "personalizations": [person],
        "from": {"email": sender.addr_spec, "name": sender.display_name},
        "subject": str(message["Subject"] or ""),
        "content": content,
    }
    if attachments:
        document["attachments"] = attachments
    if message["Reply-To"]:
        document["reply_to_list"] = [{"email": a.addr_spec} for a in message["Reply-To"].addresses]
    return httpx.Request(
        "POST",
        f"{_checked(source)}/v3/mail/send",
        headers={"Authorization": f"Bearer {secret}", "Content-Type": "application/json"},
        content=json.dumps(document).encode(),
    )


def _parts(message: EmailMessage) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Text parts, plain before HTML as SendGrid demands, and everything else as attachments."""
    texts: dict[str, str] = {}
    attachments: list[dict[str, str]] = []
    for part in message.walk():
        if part.is_multipart():
            continue
        kind = part.get_content_type()
        body = part.get_payload(decode=True)
        raw = body if isinstance(body, bytes) else b""
        wanted = kind in ("text/plain", "text/html") and part.get_content_disposition() is None
        if wanted and kind not in texts:
            texts[kind] = raw.decode(part.get_content_charset("utf-8"), "replace")
            continue
        attachment = {
            "content": base64.b64encode(raw).decode(),
            "type": kind,
            "filename": part.get_filename() or "attachment",
            "disposition": part.get_content_disposition() or "attachment",
        }
        if part["Content-ID"]:
            attachment["content_id"] = str(part["Content-ID"]).strip("<> ")
        attachments.append(attachment)
    order = ("text/plain", "text/html")
    return [{"type": k, "value": texts[k]} for k in order if k in texts], attachments


BUILDERS: dict[str, Callable[[Source, str, Envelope], httpx.Request]] = {
    "ses": ses,
    "mailgun": mailgun,
    "sendgrid": sendgrid,
}
