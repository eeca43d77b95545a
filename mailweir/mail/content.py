"""Content at the doors: built from parts, or a ready message checked at byte level.

What leaves here is what is stored and sent: RFC 5322 bytes with CRLF line ends, not dot-stuffed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mailweir.mail.mime_build import (
    Attachment,
    InvalidContent,
    assemble,
    text_part,
    whole,
)
from mailweir.mail.mime_scan import InvalidMessage, Scanned, has_bare_breaks, scan

__all__ = [
    "Attachment",
    "InvalidContent",
    "InvalidMessage",
    "Scanned",
    "build",
    "has_bare_breaks",
    "scan",
]


def build(
    lines: Iterable[bytes],
    *,
    text: str | None = None,
    html: str | None = None,
    attachments: Sequence[Attachment] = (),
    seed: bytes = b"",
) -> bytes:
    """A whole message: the given header lines (from :mod:`mailweir.mail.headers`), then its parts.

    ``seed`` fixes the boundaries. Raises :class:`InvalidContent` naming the field.
    """
    root = assemble(
        None if text is None else text_part("text", "plain", text),
        None if html is None else text_part("html", "html", html),
        attachments,
        seed,
    )
    body = b"".join(segment for segment in whole(root) if isinstance(segment, bytes))
    return b"".join(lines) + body
