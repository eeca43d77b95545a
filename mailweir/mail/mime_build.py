"""Building a message from parts: text, HTML, attachments, as bytes we wrote ourselves.

Bodies are quoted-printable or base64 (RFC 2045 6.7, 6.8) or plain 7bit, so that no remote has to offer
8BITMIME; boundaries contain ``=_``, which neither encoding can produce. A body may hold slots of a
template, which is why parts are lists of segments: bytes, or the name of a slot with its kind.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import PurePosixPath, PureWindowsPath
from typing import NamedTuple

from mailweir.mail import headers

CRLF = b"\r\n"
_CONTENT_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,64}/[a-z0-9!#$&^_.+-]{1,64}\Z")
_SEVEN_BIT = re.compile(rb"[\t\n\x20-\x7e]*\Z")
_MAX_PLAIN_LINE = 76


class InvalidContent(ValueError):
    """A part that cannot be sent; ``field`` names it, ``why`` says what would be right."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why


class Slot(NamedTuple):
    """A place of a template: the variable's name, and whether it stands in text or HTML."""

    name: str
    kind: str  # text | html


Segment = bytes | Slot


class Attachment(NamedTuple):
    """A file sent along. ``content_id`` makes it an inline part that HTML names as ``cid:``."""

    filename: str
    content_type: str
    data: bytes
    content_id: str | None = None


class Part(NamedTuple):
    """A MIME entity: its own header lines, then its body."""

    head: bytes
    body: list[Segment]


def unix_lines(text: str) -> str:
    """Line ends as LF, whatever they were."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def utf8(field: str, text: str) -> bytes:
    """UTF-8 bytes. Raises :class:`InvalidContent` for a lone surrogate or a NUL."""
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidContent(field, "has a lone surrogate, which is no character") from None
    if b"\0" in raw:
        raise InvalidContent(field, "has a NUL character")
    return raw


def quoted_printable(raw: bytes) -> bytes:
    """LF-ended bytes as quoted-printable with CRLF."""
    return binascii.b2a_qp(raw, istext=True).replace(b"\n", CRLF)


def base64_lines(raw: bytes) -> bytes:
    """Base64 in lines of 76 characters with CRLF."""
    step = 57
    encode = binascii.b2a_base64
    return b"".join(
        encode(raw[i : i + step], newline=False) + CRLF for i in range(0, len(raw), step)
    )


def text_part(field: str, subtype: str, text: str) -> Part:
    """A text part in the shortest encoding every remote takes."""
    raw = utf8(field, unix_lines(text))
    if not raw.endswith(b"\n"):
        raw += b"\n"
    if _SEVEN_BIT.match(raw) and max(map(len, raw.split(b"\n"))) <= _MAX_PLAIN_LINE:
        return Part(text_head(subtype, "7bit", "us-ascii"), [raw.replace(b"\n", CRLF)])
    quoted = quoted_printable(raw)
    if len(quoted) > len(raw) * 3 // 2:
        return Part(text_head(subtype, "base64"), [base64_lines(raw.replace(b"\n", CRLF))])
    return Part(text_head(subtype, "quoted-printable"), [quoted])


def text_head(subtype: str, encoding: str, charset: str = "utf-8") -> bytes:
    """Header lines of a text part."""
    return (
        f'Content-Type: text/{subtype}; charset="{charset}"\r\n'
        f"Content-Transfer-Encoding: {encoding}\r\n"
    ).encode("ascii")


def base_name(filename: str) -> str:
    """The last component of a path of either kind, without control characters, at most 150 long."""
    name = PureWindowsPath(PurePosixPath(filename).name).name
    name = "".join(c for c in name if c.isprintable() and not "\ud800" <= c <= "\udfff")
    name = re.sub(r'[<>:"|?*]', "_", name)  # no file system's names, and readers disagree on them
    name = name.strip(" .") or "attachment"
    if len(name) > 150:
        stem, dot, extension = name.rpartition(".")
        name = (
            stem[: 149 - len(extension)] + "." + extension
            if dot and len(extension) < 20
            else name[:150]
        )
    return name


def parameter(key: str, value: str) -> str:
    """A header parameter: quoted when ASCII, else by RFC 2231 in pieces that fit a line."""
    if value.isascii() and len(value) <= 60 and "%" not in value:
        return f'; {key}="' + re.sub(r'(["\\])', r"\\\1", value) + '"'
    encoded = "".join(
        chr(b) if chr(b).isascii() and (chr(b).isalnum() or chr(b) in "._-") else f"%{b:02X}"
        for b in value.encode("utf-8")
    )
    if len(encoded) <= 50:
        return f"; {key}*=utf-8''{encoded}"
    pieces = re.findall(r"(?:%[0-9A-F]{2}|[^%]){1,18}", encoded)
    return "".join(
        f"; {key}*{i}*=" + ("utf-8''" if i == 0 else "") + piece for i, piece in enumerate(pieces)
    )


def attachment_part(field: str, attachment: Attachment) -> Part:
    """An attachment in base64; an attached message stays as it is (RFC 2046 5.2.1)."""
    kind = attachment.content_type.lower()
    if not _CONTENT_TYPE.match(kind) or kind.startswith("multipart/"):
        raise InvalidContent(f"{field}.content_type", "give type/subtype, such as application/pdf")
    if kind.startswith("message/"):
        kind = "application/octet-stream"  # may not be base64 as message/*, and nobody needs it
    name = base_name(attachment.filename)
    how = "inline" if attachment.content_id else "attachment"
    lines = [
        headers.fold("Content-Type", kind + parameter("name", name)),
        b"Content-Transfer-Encoding: base64\r\n",
        headers.fold("Content-Disposition", how + parameter("filename", name)),
    ]
    if attachment.content_id:
        text = f"<{attachment.content_id.strip('<>')}>"
        if not re.fullmatch(r"<[!-;=?-~]{1,200}>", text):
            raise InvalidContent(f"{field}.content_id", "printable ASCII without spaces")
        lines.append(headers.fold("Content-ID", text))
    return Part(b"".join(lines), [base64_lines(attachment.data)])


def multipart(subtype: str, parts: Sequence[Part], seed: bytes) -> Part:
    """Several parts as one; the boundary depends on the seed only, so that it never changes."""
    boundary = b"=_mw" + sha256(seed + subtype.encode()).hexdigest()[:28].encode()
    segments: list[Segment] = []
    for part in parts:
        segments += [b"--" + boundary + CRLF + part.head + CRLF, *part.body, CRLF]
    segments.append(b"--" + boundary + b"--" + CRLF)
    head = (
        b"Content-Type: multipart/" + subtype.encode() + b';\r\n boundary="' + boundary + b'"\r\n'
    )
    return Part(head, segments)


def assemble(
    text: Part | None, html: Part | None, attachments: Sequence[Attachment], seed: bytes
) -> Part:
    """The tree readers expect: mixed( related( alternative(text, html), inline... ), files... )."""
    numbered = list(enumerate(attachments))
    inline = [attachment_part(f"attachments[{i}]", a) for i, a in numbered if a.content_id]
    files = [attachment_part(f"attachments[{i}]", a) for i, a in numbered if not a.content_id]
    bodies = [part for part in (text, html) if part is not None]
    if not bodies:
        if not files and not inline:
            raise InvalidContent("text", "a message needs text, html or attachments")
        bodies = [text_part("text", "plain", "")]
    body = bodies[0] if len(bodies) == 1 else multipart("alternative", bodies, seed)
    if inline:
        body = multipart("related", [body, *inline], seed)
    if files:
        body = multipart("mixed", [body, *files], seed)
    return body


def whole(root: Part) -> list[Segment]:
    """MIME-Version, the root part's header lines, the empty line, the body."""
    return [b"MIME-Version: 1.0\r\n" + root.head + CRLF, *root.body]
