"""A returned mail as the parsers of reports see it: headers and parts, bounded, whatever its shape.

Reports come from forgers and broken software as well: at most 512 KiB, 64 parts and 8 levels are looked
at, nothing in here raises for what a mail holds, and nothing is fetched, unpacked or answered.
"""

from __future__ import annotations

import email
import email.policy
import quopri
import re
from collections.abc import Iterator
from email.errors import MessageError, MissingHeaderBodySeparatorDefect
from email.header import decode_header
from email.message import Message
from email.utils import getaddresses, parsedate_to_datetime

import msgspec

NESTED = "nested/delivery-status"
"""Kind of the machine-readable part of a report that came inside another mail."""

MAX_BYTES = 512 * 1024
MAX_PARTS = 64
MAX_DEPTH = 8
MAX_TEXT = 64 * 1024
"""Characters of one part that are looked at."""


class Part(msgspec.Struct, frozen=True):
    """A leaf of the mail; ``kind`` its content type, lower case."""

    kind: str
    text: str


class BounceMail(msgspec.Struct, frozen=True):
    """What a parser may look at. Header names are lower case; a header may occur several times."""

    headers: dict[str, list[str]]
    parts: tuple[Part, ...]
    report_type: str | None  # of multipart/report

    def header(self, name: str) -> str:
        """The first value of a header, decoded, or ""."""
        values = self.headers.get(name)
        return values[0] if values else ""

    def texts(self) -> str:
        """The human-readable text, HTML stripped when there is nothing else."""
        plain = [p.text for p in self.parts if p.kind == "text/plain"]
        if any(t.strip() for t in plain):
            return "\n".join(plain)[:MAX_TEXT]
        return "\n".join(_strip_html(p.text) for p in self.parts if p.kind == "text/html")[
            :MAX_TEXT
        ]

    def original(self) -> str:
        """Headers (and perhaps body) of the mail that was returned, or ""."""
        for part in self.parts:
            if part.kind in _ORIGINAL:
                return part.text
        return ""


_ORIGINAL = (
    "message/rfc822",
    "message/global",
    "text/rfc822-headers",
    "text/rfc822",
    "message/global-headers",
    "message/partial",
)
_TAGS = re.compile(r"<(?:br|/p|/div|/tr|/li|/h\d|p|div)\b[^>]{0,200}>", re.IGNORECASE)
_UNSEEN = re.compile(r"<(style|script|head)\b", re.IGNORECASE)
_CLOSED = {n: re.compile(f"</{n}>", re.IGNORECASE) for n in ("style", "script", "head")}
_ANY_TAG = re.compile(r"</?[a-z!][^<>@]{0,2000}>|<a\b[^<>]{0,500}>", re.IGNORECASE)


def _strip_html(text: str) -> str:
    import html

    text = _TAGS.sub("\n", _seen(text[:MAX_TEXT]))
    return html.unescape(_ANY_TAG.sub(" ", text))


def _seen(text: str) -> str:
    """Without what a browser does not show; one pass, since a regular expression would take a square."""
    kept: list[str] = []
    place = 0
    while (found := _UNSEEN.search(text, place)) is not None:
        end = _CLOSED[found[1].lower()].search(text, found.end())
        if end is None:
            break  # never closed: shown as it is
        kept.append(text[place : found.start()])
        place = end.start()
    return " ".join([*kept, text[place:]])


def parse_mail(data: bytes) -> BounceMail:
    """Read a mail; what cannot be read as MIME is one text part."""
    data = data[:MAX_BYTES].lstrip()
    if data.startswith((b"From ", b">From ")):
        data = data.partition(b"\n")[2]  # an mbox separator
    try:
        message = email.message_from_bytes(data, policy=email.policy.compat32)
        if any(isinstance(d, MissingHeaderBodySeparatorDefect) for d in message.defects):
            message = email.message_from_bytes(_refolded(data), policy=email.policy.compat32)
        parts = tuple(_parts(message))
        headers = _headers(message)
        report_type = message.get_param("report-type")
    except (MessageError, ValueError, LookupError, RecursionError, TypeError, AttributeError):
        # the standard parser gives up on some malformed structures: look at the text as it is
        text = data.decode("utf-8", "replace")
        return BounceMail({}, (Part("text/plain", text[:MAX_TEXT]),), None)
    kind = report_type.strip().lower() if isinstance(report_type, str) else None
    return BounceMail(headers, parts, kind)


_NAMED = re.compile(rb"[ \t]|[!-9;-~]{1,76}[ \t]*:|\r?$")


def _refolded(data: bytes) -> bytes:
    """A mail whose store lost the white space that continues a header: without it the headers end there."""
    blank = re.search(rb"\r?\n\r?\n", data)
    if blank is None:
        return data
    lines = data[: blank.start()].split(b"\n")
    return b"\n".join(n if _NAMED.match(n) else b" " + n for n in lines) + data[blank.start() :]


def _headers(message: Message) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    charset = _charset(message)
    for name, value in list(message.raw_items())[:300]:
        values = found.setdefault(name.lower(), [])
        if len(values) < 20:
            values.append(decode(str(value), charset))
    return found


def _charset(message: Message) -> str | None:
    """The charset a mail declares for itself or its first part: most likely that of bare bytes in its
    headers as well."""
    payload = message.get_payload()
    first = payload[0] if isinstance(payload, list) and payload else None
    own = message.get_content_charset()
    return own or (first.get_content_charset() if isinstance(first, Message) else None)


def decode(value: str, charset: str | None = None) -> str:
    """A header value with its encoded words decoded, on one line; damaged ones stay as they are. Bare
    bytes are UTF-8, or else of ``charset``."""
    value = " ".join(value[:4000].split())
    if "=?" not in value:
        return _bare(value, charset)
    try:
        chunks = decode_header(value)
        return "".join(
            _bare(c, charset) if isinstance(c, str) else c.decode(charset_of or "ascii", "replace")
            for c, charset_of in chunks
        )
    except (MessageError, ValueError, LookupError):
        return _bare(value, charset)


def _bare(value: str, charset: str | None) -> str:
    if value.isascii():
        return value
    raw = value.encode("utf-8", "surrogateescape")
    for name in ("utf-8", charset or "utf-8"):
        try:
            return raw.decode(name)
        except (UnicodeError, LookupError):
            continue
    return raw.decode("utf-8", "replace")


_TYPE = re.compile(r"[\w!#$&^.+\-]{1,100}/[\w!#$&^.+\-]{1,100}")


def _kind(message: Message) -> str:
    """The content type, also where nothing but white space stands before its parameters."""
    found = _TYPE.match(message.get_content_type())
    return found[0] if found else "text/plain"


def _parts(message: Message) -> Iterator[Part]:
    stack: list[tuple[Message, int]] = [(message, 0)]
    seen = 0
    while stack and seen < MAX_PARTS:
        current, depth = stack.pop()
        kind = _kind(current)
        payload = current.get_payload()
        if kind == "message/rfc822" or (kind in _ORIGINAL and isinstance(payload, list)):
            seen += 1
            inner = payload[0] if isinstance(payload, list) and payload else None
            yield Part(
                "message/rfc822", _flat(inner) if isinstance(inner, Message) else _text(current)
            )
            if isinstance(inner, Message) and depth < 3:
                yield from _wrapped_report(inner)
            continue
        if isinstance(payload, list) and not kind.startswith("message/"):
            if depth < MAX_DEPTH:
                stack.extend((p, depth + 1) for p in reversed(payload) if isinstance(p, Message))
            continue
        seen += 1
        if (encoded := _unread(current)) is not None:
            yield Part(kind, encoded)
        elif isinstance(payload, list):
            yield Part(kind, _groups(payload))
        else:
            # a multipart without its boundary is one text
            plain = "text/plain" if kind.startswith("multipart/") else kind
            yield Part(plain, _text(current))


def _groups(payload: list[Message | str]) -> str:
    """The text of message/delivery-status, which the parser reads as a list of header groups."""
    groups = [p for p in payload[:200] if isinstance(p, Message)]
    blocks = ["\n".join(f"{k}: {v}" for k, v in p.raw_items()) for p in groups]
    tail = [_text(p) for p in groups if isinstance(p.get_payload(), str)]
    return "\n\n".join(blocks + tail)[:MAX_TEXT]


def _wrapped_report(inner: Message) -> Iterator[Part]:
    """The machine-readable part of an embedded mail that is a report itself."""
    payload = inner.get_payload()
    if inner.get_content_type() != "multipart/report" or not isinstance(payload, list):
        return
    for part in payload[:8]:
        if isinstance(part, Message) and part.get_content_type() == "message/delivery-status":
            groups = part.get_payload()
            if isinstance(groups, list):
                yield Part(NESTED, _groups(groups))


def _unread(message: Message) -> str | None:
    """The text of a ``message/`` part sent in base64 or quoted-printable, which RFC 2046 5.2 forbids and
    the standard parser therefore reads undecoded; None for any other."""
    encoding = str(message.get("content-transfer-encoding", "")).strip().lower()
    payload = message.get_payload()
    if encoding not in ("base64", "quoted-printable") or not isinstance(payload, list):
        return None
    lines: list[str] = []
    for part in payload[:200]:
        if isinstance(part, Message):
            lines.extend(f"{name}: {value}" for name, value in part.raw_items())
            body = part.get_payload()
            lines.append(body if isinstance(body, str) else "")
    plain = Message()
    plain["Content-Transfer-Encoding"] = encoding
    plain.set_payload("\n".join(lines).strip("\n"))
    return _text(plain)


def _flat(message: Message) -> str:
    """The embedded mail's headers and the beginning of its body, without walking into it."""
    lines = [f"{k}: {v}" for k, v in list(message.raw_items())[:300]]
    body = message.get_payload()
    return ("\n".join(lines) + "\n\n" + (body if isinstance(body, str) else ""))[:MAX_TEXT]


_SOFT = re.compile(rb"^[^\r\n]{60,75}=\r?$", re.MULTILINE)
"""A line of quoted-printable that goes on: half an address would be somebody else's."""


def _text(part: Message) -> str:
    raw = part.get_payload(decode=True)
    if not isinstance(raw, bytes):
        return str(part.get_payload() or "")[:MAX_TEXT]
    raw = raw[: 2 * MAX_TEXT]
    if "content-transfer-encoding" not in part and len(_SOFT.findall(raw)) > 1:
        raw = quopri.decodestring(raw)  # whatever stored it lost the header that says so
    charset = part.get_content_charset() or "utf-8"
    try:
        text = raw.decode(charset, "strict")
    except (LookupError, UnicodeError, ValueError):
        try:
            text = raw.decode("utf-8", "strict")
        except UnicodeError:
            text = raw.decode("latin-1")
    return text.replace("\r\n", "\n")[:MAX_TEXT]


def header_block(text: str) -> dict[str, list[str]]:
    """Header fields at the beginning of a text (the original's headers), folded lines joined."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.lstrip("\r\n").splitlines()[:400]:
        if not line.strip():
            break
        if line[0] in " \t" and name:
            found[name][-1] += " " + line.strip()
            continue
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if not colon or " " in name:
            name = ""
            continue
        found.setdefault(name, []).append(value.strip())
    return {k: [decode(v) for v in values] for k, values in found.items()}


def addresses(values: list[str]) -> list[str]:
    """Plain addresses of header values."""
    try:
        return [a for _, a in getaddresses([v[:4000] for v in values[:20]]) if "@" in a]
    except (ValueError, IndexError, RecursionError):
        return []


_FOR = re.compile(r"\bfor\s{1,3}<([^\s<>@]{1,100}@[^\s<>@]{1,200})>", re.IGNORECASE)


def received_for(original: dict[str, list[str]]) -> str | None:
    """Whom the first hop took a mail for (RFC 5321 4.4): where its To is missing or blotted out."""
    for value in reversed(original.get("received", [])[:20]):
        found = _FOR.search(value)
        if found:
            return found[1]
    return None


def date_of(value: str) -> float | None:
    """Unix seconds of a Date header; None where it cannot be read."""
    try:
        return parsedate_to_datetime(value[:100]).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
