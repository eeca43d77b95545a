"""Reading a ready message at byte level: what the door must know, nothing rewritten.

No ``email`` package here: it is slow on the hot path, it forgives what receivers do not, and a
message serialised from its tree is another message. A field is a name and its raw bytes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mailweir.mail.headers import MAX_LINE, OWN_PREFIX

SINGLE = frozenset(
    [
        "from",
        "sender",
        "reply-to",
        "to",
        "cc",
        "subject",
        "date",
        "message-id",
        "in-reply-to",
        "references",
        "mime-version",
        "content-type",
        "content-transfer-encoding",
    ]
)
"""Fields RFC 5322 3.6 and RFC 2045 allow once; a second one is read differently by different readers."""

DROPPED = frozenset(["bcc", "resent-bcc", "return-path"])
_FIELD = re.compile(rb"([!-9;-~]{1,998}):")
_BREAK = re.compile(rb"\r\n|\r|\n")
_BOUNDARY = re.compile(rb'boundary\s*=\s*(?:"([^"\r\n]{1,200})"|([^\s";]{1,200}))', re.IGNORECASE)
_DELIMITER = re.compile(rb"\r\n--([^\r\n]{1,210})")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class InvalidMessage(ValueError):
    """The bytes are no message we relay; ``why`` names the header or limit."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Field(NamedTuple):
    """A header field: lower-case name, the bytes it had with its CRLF."""

    name: str
    raw: bytes

    @property
    def value(self) -> str:
        """Unfolded value without the blanks around it; the header section is ASCII by then."""
        return self.raw.partition(b":")[2].replace(b"\r\n", b"").decode("ascii").strip(" \t")


class Scanned(NamedTuple):
    """A message without what must not leave us: ``content`` is sent, ``own`` are its X-Mailweir-*."""

    content: bytes
    fields: tuple[Field, ...]  # those of the content, in order
    own: tuple[tuple[str, str], ...]  # lower-case name without prefix, value
    dropped: tuple[str, ...]  # names removed
    bcc: tuple[str, ...]  # raw values of Bcc, for callers that address by header
    parts: int

    def first(self, name: str) -> str | None:
        """Value of the first field of that (lower-case) name."""
        for field in self.fields:
            if field.name == name:
                return field.value
        return None


def has_bare_breaks(raw: bytes) -> bool:
    """Whether a CR or LF stands alone: SMTP's smuggling material (RFC 5321 2.3.8)."""
    pairs = raw.count(b"\r\n")
    return raw.count(b"\n") != pairs or raw.count(b"\r") != pairs


def normalise(raw: bytes) -> bytes:
    """Every line end as CRLF, and one at the very end."""
    if has_bare_breaks(raw):
        raw = _BREAK.sub(b"\r\n", raw)
    return raw if raw.endswith(b"\r\n") else raw + b"\r\n"


def scan(
    raw: bytes, *, max_headers: int = 200, max_header: int = 65536, max_parts: int = 500
) -> Scanned:
    """Check a ready message and take out Bcc, Return-Path and X-Mailweir-* fields.

    Bare CR and LF become CRLF; all other bytes stay. Limits: fields, bytes of all fields, MIME parts,
    998 octets a line (RFC 5322 2.1.1). Linear time. Raises :class:`InvalidMessage`.
    """
    if not raw.strip():
        raise InvalidMessage("the message is empty")
    raw = normalise(raw)
    if raw.startswith(b"\r\n"):
        raise InvalidMessage("the message has no header section")
    end = raw.find(b"\r\n\r\n")
    head, body = (raw, b"") if end < 0 else (raw[: end + 2], raw[end + 4 :])
    if len(head) > max_header:
        raise InvalidMessage(f"the header section is larger than {max_header} bytes")
    fields = _fields(head, max_headers)
    seen: set[str] = set()
    for field in fields:
        if field.name in SINGLE:
            if field.name in seen:
                raise InvalidMessage(f"the {field.name} header stands there twice")
            seen.add(field.name)
    if b"\0" in raw:
        raise InvalidMessage("a NUL byte is not allowed (RFC 5322 4)")
    if max(map(len, raw.split(b"\r\n"))) > MAX_LINE:
        raise InvalidMessage(
            f"a line is longer than {MAX_LINE} bytes; encode the part as quoted-printable or base64"
        )
    parts = count_parts(fields, body, max_parts)
    kept = tuple(f for f in fields if f.name not in DROPPED and not f.name.startswith(OWN_PREFIX))
    own = tuple(
        (f.name.removeprefix(OWN_PREFIX), f.value) for f in fields if f.name.startswith(OWN_PREFIX)
    )
    return Scanned(
        content=b"".join(f.raw for f in kept) + b"\r\n" + body,
        fields=kept,
        own=own,
        dropped=tuple(f.name for f in fields if f.name in DROPPED),
        bcc=tuple(f.value for f in fields if f.name == "bcc"),
        parts=parts,
    )


def _fields(head: bytes, max_headers: int) -> list[Field]:
    fields: list[Field] = []
    current: list[bytes] = []
    name = ""
    for number, text in enumerate(head.split(b"\r\n")[:-1], start=1):
        if text[:1] in (b" ", b"\t"):
            if not current:
                raise InvalidMessage("the first line is a continuation line")
            current += (text, b"\r\n")
            continue
        match = _FIELD.match(text)
        if match is None:
            raise InvalidMessage(f"line {number} of the header section is no 'Name: value'")
        if current:
            fields.append(Field(name, b"".join(current)))
            if len(fields) >= max_headers:
                raise InvalidMessage(f"more than {max_headers} header fields")
        name = match[1].decode("ascii").lower()
        current = [text, b"\r\n"]
    fields.append(Field(name, b"".join(current)))
    for field in fields:
        if not field.raw.isascii():
            raise InvalidMessage(
                f"the {field.name} header has 8-bit characters; encode it by RFC 2047"
            )
        if _CONTROL.search(field.raw.replace(b"\r\n", b"")):
            raise InvalidMessage(f"the {field.name} header has a control character")
    return fields


def count_parts(fields: list[Field], body: bytes, max_parts: int) -> int:
    """MIME parts, by counting delimiter lines of every boundary named anywhere; 1 without multipart.

    An upper bound is enough for a cap, and one pass over the body costs nothing that grows with depth.
    Raises :class:`InvalidMessage` above ``max_parts``.
    """
    kind = next((f for f in fields if f.name == "content-type"), None)
    if kind is None or not kind.value.lower().startswith(("multipart/", "message/")):
        return 1
    names: set[bytes] = set()
    for source in (kind.raw, body):
        for match in _BOUNDARY.finditer(source):
            names.add(match[1] or match[2])
            if len(names) > max_parts:
                raise InvalidMessage(f"more than {max_parts} MIME parts")
    count = 1
    for match in _DELIMITER.finditer(b"\r\n" + body):
        if match[1].rstrip() in names:
            count += 1
            if count > max_parts:
                raise InvalidMessage(f"more than {max_parts} MIME parts")
    return count
