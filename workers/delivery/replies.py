"""Strict reading of SMTP replies (RFC 5321 4.2). Pure.

A reply that breaks the grammar ends the session: a client that guesses mis-pairs the next reply with
the wrong mail, and loses it. Bare LF line ends are accepted, as every MTA does; nothing else is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

# RFC 5321 4.2.3 allows 0-5 as second digit; "571" and friends are seen in the wild and accepted.
_CODES = {b"%d" % code: code for code in range(200, 600)}
_SHORT = 100  # bytes of a line worth remembering


class MalformedReply(Exception):
    """Not an SMTP reply; the text is a printable excerpt."""


class Reply(NamedTuple):
    """One reply: its code and its lines joined by a space, codes kept, as mail logs show it."""

    code: int
    text: str
    parts: tuple[str, ...] = ()  # the lines without their codes, where there are several

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines without their codes."""
        return self.parts or (self.text[4:],)


def printable(raw: bytes, limit: int = 500) -> str:
    """Bytes as one line no terminal or log can be fooled with: controls and bad UTF-8 escaped."""
    text = raw[:limit].decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


@lru_cache(maxsize=1024)
def _single(line: bytes) -> Reply:
    """A reply of one short line; most of a server's are the same ones again and again."""
    code = _CODES.get(line[:3])
    if code is None:
        raise MalformedReply(f"not an SMTP reply: {printable(line, 200)}")
    return Reply(code, printable(line))


class ReplyReader:
    """Feed bytes, get whole replies. ``limit`` is the size of one reply in bytes."""

    __slots__ = ("_buffer", "_code", "_lines", "_size", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = b""
        self._lines: list[bytes] = []
        self._code = 0
        self._size = 0

    @property
    def pending(self) -> bool:
        """Bytes of an unfinished reply are waiting."""
        return bool(self._buffer or self._lines)

    def feed(self, data: bytes, replies: list[Reply]) -> None:
        """Append the whole replies in ``data`` to ``replies``. Raises :class:`MalformedReply`; replies
        completed before the bad line are in the list then."""
        if self._buffer:
            data = self._buffer + data
        lines = data.split(b"\n")
        self._buffer = lines.pop()
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if not self._lines and len(line) <= _SHORT and line[3:4] == b" ":
                replies.append(_single(line))
                continue
            code = _CODES.get(line[:3])
            mark = line[3:4]
            if code is None or (mark != b" " and mark != b"-" and mark):
                raise MalformedReply(f"not an SMTP reply: {printable(line, 200)}")
            if self._lines or mark == b"-":
                if self._lines and code != self._code:
                    raise MalformedReply(f"codes differ within a reply: {printable(line, 200)}")
                self._size += len(line)
                if self._size > self.limit:
                    raise MalformedReply(f"reply longer than {self.limit} bytes")
                self._lines.append(line)
                self._code = code
                if mark == b"-":
                    continue
                text = " ".join(printable(each, self.limit) for each in self._lines)
                parts = tuple(printable(each[4:], self.limit) for each in self._lines)
                self._lines = []
                self._size = 0
                replies.append(Reply(code, text, parts))
                continue
            if len(line) > self.limit:
                raise MalformedReply(f"reply longer than {self.limit} bytes")
            replies.append(Reply(code, printable(line, self.limit)))
        if len(self._buffer) + self._size > self.limit:
            raise MalformedReply(f"reply longer than {self.limit} bytes")
