"""Who sends: the From mailbox and the reverse-path, both of domains the caller may use."""

from __future__ import annotations

from mailweir.contracts.credential import ApiKey
from mailweir.contracts.submit import Recipient, SubmitRequest
from mailweir.mail import headers
from mailweir.mail.address import (
    Address,
    InvalidAddress,
    Mailbox,
    parse,
    parse_mailbox,
    split_mailboxes,
)
from mailweir.mail.mime_scan import Scanned
from producer.policy.refusal import Forbidden, Invalid


def who_sends(
    request: SubmitRequest, scanned: Scanned | None, key: ApiKey
) -> tuple[Mailbox | None, str]:
    """The From mailbox and the reverse-path. Raises Invalid, Forbidden with the field's path."""
    sender: Mailbox | None = None
    if request.from_ is not None:
        item = request.from_
        try:
            if isinstance(item, Recipient):
                sender = Mailbox(item.name or "", parse(item.email))
            else:
                sender = parse_mailbox(item)
            headers.address_line("From", [sender])
        except InvalidAddress as error:
            raise Invalid("from", error.why) from None
        except headers.InvalidHeader as error:
            raise Invalid("from", error.why) from None
        _check_domain(key, "from", sender.address)
    elif scanned is None:
        raise Invalid("from", "is missing")
    asked = sender
    in_header = _header_sender(scanned, "from")
    if in_header is not None:
        _check_domain(key, "raw.from", in_header)
        on_behalf = _header_sender(scanned, "sender")
        if on_behalf is not None:
            _check_domain(key, "raw.sender", on_behalf)
        sender = Mailbox("", in_header)
    elif sender is None and not request.mail_from:
        raise Invalid("from", "neither the request nor the message says who sends")
    if request.mail_from is None:
        assert sender is not None
        return sender, (asked or sender).address.text
    if request.mail_from == "":
        return sender, ""
    try:
        path = parse(request.mail_from)
    except InvalidAddress as error:
        raise Invalid("mail_from", error.why) from None
    _check_domain(key, "mail_from", path)
    return sender or Mailbox("", path), path.text


def _header_sender(scanned: Scanned | None, name: str) -> Address | None:
    """The one address of a ready message's From or Sender; None when the header is not there."""
    value = scanned.first(name) if scanned else None
    if value is None:
        return None
    try:
        items = split_mailboxes(value)
        if len(items) != 1:
            raise Invalid(f"raw.{name}", "exactly one address")
        item = items[0]
        return parse(item[:-1].rpartition("<")[2] if item.endswith(">") else item)
    except InvalidAddress as error:
        raise Invalid(f"raw.{name}", error.why) from None


def _check_domain(key: ApiKey, field: str, address: Address) -> None:
    if not key.may_send_as(address.domain):
        raise Forbidden(field, f"this API key may not send as {address.domain}")
