"""The one gate for header names and values, and the only place that writes a header line.

Lines are assembled from bytes we checked, never by serialising a parsed message again: Python's
``email`` before 3.12.5 writes injected lines when it refolds (CVE-2024-6923). RFC 5322 2.1.1 (lines
of at most 998 characters, 78 preferred), 2.2.3 (folding), RFC 2047 (encoded words).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Sequence

from mailweir.mail.address import InvalidAddress, Mailbox, parse_mailbox, split_mailboxes

MAX_NAME = 76
MAX_LINE = 998  # octets without CRLF
PREFERRED_LINE = 78

RESERVED = frozenset(
    [
        "from",
        "sender",
        "to",
        "cc",
        "bcc",
        "subject",
        "date",
        "received",
        "return-path",
        "dkim-signature",
        "mime-version",
        "content-type",
        "content-transfer-encoding",
        "content-disposition",
        "content-id",
        "authentication-results",
        "feedback-id",
        "delivered-to",
        "apparently-to",
        "resent-from",
        "resent-sender",
        "resent-to",
        "resent-cc",
        "resent-bcc",
        "resent-date",
        "resent-message-id",
    ]
)
"""Names a caller may not set as a free header: they have fields of their own, or belong to us."""

OWN_PREFIX = "x-mailweir-"
_RESERVED_PREFIXES = ("arc-", OWN_PREFIX)
_NAME = re.compile(r"[!-9;-~]{1,76}\Z")
_BAD_VALUE = re.compile("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_PRINTABLE = re.compile(r"[\x20-\x7e\t]*\Z")
_TOKEN = re.compile(r"[ \t]*[^ \t]+")
_MSG_ID = re.compile(r"<[!-;=?A-Z^-~\[\]]{1,240}@[!-;=?A-Z^-~\[\]]{1,240}>")
_ATOM_WORDS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+\Z")
_Q_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")


class InvalidHeader(ValueError):
    """A name or value that may not stand in a header; ``why`` says what would be right."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"header {name[:MAX_NAME]!r}: {why}")
        self.name = name[:MAX_NAME]
        self.why = why


def check_name(name: str) -> str:
    """A name a caller may set. Raises :class:`InvalidHeader`."""
    if not _NAME.match(name):
        raise InvalidHeader(
            name, "a name is 1 to 76 printable ASCII characters without ':' or space"
        )
    lower = name.lower()
    if lower in RESERVED or lower.startswith(_RESERVED_PREFIXES):
        raise InvalidHeader(name, "this header has a field of its own or is written by us")
    return name


def check_value(name: str, value: str, limit: int = 65536) -> str:
    """A value without line breaks and control characters, trimmed. Raises :class:`InvalidHeader`."""
    if len(value) > limit:
        raise InvalidHeader(name, f"longer than {limit} characters")
    bad = _BAD_VALUE.search(value)
    if bad:
        raise InvalidHeader(name, f"character U+{ord(bad[0]):04X} is not allowed in a header")
    return value.strip(" \t")


def line(name: str, value: str) -> bytes:
    """A checked header as bytes with CRLF: encoded where it is not plain ASCII, folded where long.

    Known structured headers are checked by their own grammar; every other value is unstructured text
    and comes out at the reader exactly as given. Raises :class:`InvalidHeader`.
    """
    value = check_value(name, value)
    structured = _STRUCTURED.get(name.lower())
    if structured is not None:
        return fold(name, structured(name, value))
    return unstructured(name, value)


def unstructured(name: str, value: str) -> bytes:
    """A text header (Subject, X-...). Text that looks encoded is encoded again, never trusted."""
    if _PRINTABLE.match(value) and "=?" not in value:
        if len(name) + 2 + len(value) <= PREFERRED_LINE:
            return f"{name}: {value}\r\n".encode("ascii")
        if all(len(token) < 900 for token in value.split(" ")):
            return fold(name, value)
    return fold(name, encode_words(value, len(name) + 2))


def fold(name: str, value: str) -> bytes:
    """Fold ASCII text before blanks, so that unfolding gives it back. Raises when no fold helps."""
    out: list[str] = []
    used = len(name) + 2
    for token in _TOKEN.findall(value):
        if out and used + len(token) > PREFERRED_LINE and token[0] in " \t":
            out.append("\r\n")
            used = 0
        elif used + len(token) > MAX_LINE:
            raise InvalidHeader(name, f"a word is longer than a line may be ({MAX_LINE})")
        out.append(token)
        used += len(token)
    text = "".join(out)
    if not text.isascii():
        raise InvalidHeader(name, "only ASCII may stand here")
    return f"{name}: {text}\r\n".encode("ascii")


def encode_words(text: str, used: int = 0) -> str:
    """RFC 2047 encoded words of at most 75 characters, cut between characters, Q or B by length."""
    raw = text.encode("utf-8")
    plain = sum(1 for byte in raw if byte in _Q_SAFE or byte == 32)
    q = len(raw) - plain <= len(raw) // 3
    words: list[str] = []
    current = bytearray()
    room = max(75 - used, 30)
    for char in text:
        encoded = char.encode("utf-8")
        piece = current + encoded
        if current and len(_word(bytes(piece), q)) > room:
            words.append(_word(bytes(current), q))
            current = bytearray()
            room = 75
        current += encoded
    words.append(_word(bytes(current), q))
    return " ".join(words)


def _word(raw: bytes, q: bool) -> str:
    if q:
        body = "".join(chr(b) if b in _Q_SAFE else "_" if b == 32 else f"={b:02X}" for b in raw)
        return f"=?utf-8?q?{body}?="
    return f"=?utf-8?b?{binascii.b2a_base64(raw, newline=False).decode('ascii')}?="


def mailbox(name: str, box: Mailbox) -> str:
    """A mailbox as it stands in a header: the name quoted or encoded, the address as parsed."""
    shown = check_value(name, box.name, 998)
    if not shown:
        return box.address.text
    if not shown.isascii() or "=?" in shown or len(shown) > 60:
        shown = encode_words(shown, len(name) + 2)
    elif not _ATOM_WORDS.match(shown):
        shown = '"' + re.sub(r'(["\\])', r"\\\1", shown) + '"'
    return f"{shown} <{box.address.text}>"


def address_line(name: str, boxes: Sequence[Mailbox]) -> bytes:
    """A From, To, Cc or Reply-To line, folded between members."""
    return fold(name, ", ".join(mailbox(name, box) for box in boxes))


def check_message_id(name: str, value: str) -> str:
    """``<left@right>``, one of them. Raises :class:`InvalidHeader`."""
    if not _MSG_ID.fullmatch(value):
        raise InvalidHeader(name, "a message id is <left@right> without spaces (RFC 5322 3.6.4)")
    return value


def _message_ids(name: str, value: str) -> str:
    for token in value.split():
        check_message_id(name, token)
    return value


def _mailboxes(name: str, value: str) -> str:
    try:
        boxes = [parse_mailbox(item) for item in split_mailboxes(value)]
    except InvalidAddress as error:
        raise InvalidHeader(name, error.why) from None
    if not boxes:
        raise InvalidHeader(name, "no address")
    return ", ".join(mailbox(name, box) for box in boxes)


def check_unsubscribe(name: str, value: str) -> str:
    """``<https://...>`` and ``<mailto:...>`` only, one https among them (RFC 2369, RFC 8058)."""
    links = [link.strip() for link in value.split(",")]
    if not all(
        re.fullmatch(r"<(?:https://[!-;=?-~]+|mailto:[!-;=?-~]+@[!-;=?-~]+)>", li) for li in links
    ):
        raise InvalidHeader(name, "give <https://...> or <mailto:...>, separated by commas")
    return ", ".join(links)


def _one_click(name: str, value: str) -> str:
    if value != "List-Unsubscribe=One-Click":
        raise InvalidHeader(name, "the only value is List-Unsubscribe=One-Click (RFC 8058 3.1)")
    return value


_STRUCTURED = {
    "message-id": check_message_id,
    "in-reply-to": _message_ids,
    "references": _message_ids,
    "reply-to": _mailboxes,
    "list-unsubscribe": check_unsubscribe,
    "list-unsubscribe-post": _one_click,
}


def join(lines: Iterable[bytes]) -> bytes:
    """Header lines in order."""
    return b"".join(lines)
