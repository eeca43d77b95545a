"""Delivery status notifications as RFC 3464 and 6533 write them, and as MTAs write them instead."""

from __future__ import annotations

import re

import msgspec

from mailweir.mail.bounce_mail import NESTED, BounceMail, header_block
from mailweir.mail.reply import code_of, enhanced_of


class Failed(msgspec.Struct, frozen=True):
    """One recipient of a report."""

    recipient: str | None
    action: str  # failed | delayed | delivered | relayed | expanded
    status: str | None  # enhanced code
    reply: str  # the remote's words, or the reporter's, as lines
    remote_host: str | None = None
    by_rule: bool = False  # a rule of the recipient's own refused it: the words are a person's


_STATUS_PARTS = ("message/delivery-status", "message/global-delivery-status")
_GROUPS = re.compile(r"\n[ \t]*\n+")
_ADDRESS = re.compile(r"[^\s<>()\[\],;:\"']{1,200}@[^\s<>()\[\],;:\"']{1,255}")
_ACTIONS = {"failed", "delayed", "delivered", "relayed", "expanded"}
_STATUS = re.compile(r"(?<![\d.])([245])\.(\d{1,3})\.(\d{1,3})(?![\d.])")


_COMMENT = re.compile(r"\(([^()]{4,300})\)")  # RFC 5322 3.2.2


def recipient_of(value: str) -> str | None:
    """The address in ``rfc822; <a@b>``, ``LOCAL;a@b``, ``utf-8; a@b``; None for X.400 and the like."""
    _, semicolon, rest = value.partition(";")
    text = (rest if semicolon else value).strip()
    if not text or value.lower().lstrip().startswith("x400"):
        return None
    quoted = re.search(r'<?("[^"]{1,100}"@[^\s<>;]{1,255})>?', text)
    if quoted:
        return quoted[1]
    found = _ADDRESS.search(text)
    if found is None:
        return None
    address = found[0].strip(".'`")
    address = re.sub(r"\\x\{([0-9A-Fa-f]{1,6})\}", _unxtext, address)
    return address.replace("+2B", "+").replace("+3D", "=")


def _unxtext(match: re.Match[str]) -> str:
    point = int(match[1], 16)
    return chr(point) if 0x20 < point < 0x110000 and not 0xD800 <= point < 0xE000 else "?"


def status_text(mail: BounceMail, nested: bool) -> str | None:
    """The machine-readable part; also where it came as plain text or as an attachment. ``nested``: that of
    a report a gateway wrapped into a notice of its own."""
    if nested:
        return next((p.text for p in mail.parts if p.kind == NESTED), None)
    for part in mail.parts:
        if part.kind in _STATUS_PARTS:
            return part.text
    for part in mail.parts:
        if part.kind.startswith(("text/", "application/octet", "message/")) and re.search(
            r"^(?:final|original)-recipient:", part.text, re.IGNORECASE | re.MULTILINE
        ):
            return part.text
    return None


_REFUSED = re.compile(
    r"(?:was|has been|is) (?:automatically )?(?:rejected|refused)\b", re.IGNORECASE
)


def parse_refusal(mail: BounceMail) -> list[Failed]:
    """A recipient's rule, or a mailbox over its quota, that refused a mail in the form of a disposition
    notification (RFC 5429 2.1.2 of Sieve; Dovecot); empty for one that tells what became of the mail."""
    submitted = mail.header("auto-submitted").lower()
    text = " ".join(mail.texts()[:4000].split())
    if "rejected" not in submitted and not _REFUSED.search(text):
        return []
    for part in mail.parts:
        if part.kind == "message/disposition-notification":
            fields = header_block(part.text)
            for name in ("original-recipient", "final-recipient"):
                for value in fields.get(name, ()):
                    if recipient := recipient_of(value):
                        return [Failed(recipient, "failed", None, text[:2000], by_rule=True)]
    return []


def parse_dsn(mail: BounceMail, *, nested: bool = False) -> list[Failed]:
    """The recipients an RFC 3464 report names, at most 1,000; empty when it is none. ``nested``: as
    :func:`status_text` takes it."""
    text = status_text(mail, nested)
    if text is None:
        return []
    found: list[Failed] = []
    remote = None
    for block in _GROUPS.split(text.replace("\r\n", "\n"))[:1002]:
        fields = header_block(block)
        remote = _typed(fields, "reporting-mta") or remote
        if any(k in fields for k in ("final-recipient", "original-recipient", "action")):
            found.append(_group(fields, remote))
    return found


def _typed(fields: dict[str, list[str]], name: str) -> str | None:
    value = (fields.get(name) or [""])[0]
    return value.rpartition(";")[2].strip()[:255] or None


def _group(fields: dict[str, list[str]], reporter: str | None) -> Failed:
    recipient = None
    for name in ("original-recipient", "final-recipient", "x-actual-recipient"):
        for value in fields.get(name, ()):
            recipient = recipient or recipient_of(value)
    status = comment = None
    for value in fields.get("status", ()):
        found = _STATUS.search(value)
        if found:
            status = f"{found[1]}.{int(found[2])}.{int(found[3])}"
            # Oracle's server, and others, give the reason in the comment alone
            comment = _COMMENT.search(value[found.end() :])
    action = (fields.get("action") or ["failed"])[0].split(maxsplit=1)[:1]
    word = action[0].strip("();,.").lower() if action else "failed"
    if word == "deliverable":
        word = "relayed"  # Postfix, asked whether it could be (sendmail -bv): nothing was delivered
    if word not in _ACTIONS:
        word = {"2": "delivered", "4": "delayed"}.get((status or "5")[0], "failed")
    diagnostic = " ".join(" ".join(fields.get("diagnostic-code", ())).split())
    if _EMPTY.match(diagnostic) and comment is not None:
        diagnostic = comment[1]
    return Failed(
        recipient,
        word,
        status,
        with_status(diagnostic, status)[:2000],
        _typed(fields, "remote-mta") or reporter,
    )


_EMPTY = re.compile(r"^\s*(?:smtp|x-[\w-]+|unknown)?\s*;?\s*$", re.IGNORECASE)


def with_status(diagnostic: str, status: str | None) -> str:
    """The diagnostic text, with the Status field's code where the text has none of its own."""
    if _EMPTY.match(diagnostic):
        return status or ""
    if status is None or enhanced_of(diagnostic) is not None:
        return diagnostic
    if status.endswith(".0.0"):
        return diagnostic  # "4.0.0" beside Action: failed says nothing the text does not say better
    code = code_of(diagnostic)
    if code is None:
        kind, semicolon, rest = diagnostic.partition(";")
        return (
            f"{kind}; {status} {rest.strip()}"
            if semicolon and len(kind) < 20
            else f"{status} {diagnostic}"
        )
    return (
        re.sub(rf"\b{code}[ \-]", f"{code} {status} ", diagnostic, count=1)
        if f"{code} " in diagnostic or f"{code}-" in diagnostic
        else f"{diagnostic} {status}"
    )
