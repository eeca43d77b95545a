"""The witness: what arrived, written before it is acknowledged, in a file of its own.

One JSON object a line: ``at`` (real Unix seconds), ``provider``, ``client`` (IP), ``sender``,
``recipient``, ``ref`` (the reference header, None without), ``message_id``, ``sha256`` of the bytes as
received (dot-unstuffed), ``size``. ``write`` returns when the line is with the operating system, so a
SIGKILL of this process loses nothing acknowledged.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

REFERENCE = b"x-mailweir-ref:"
MESSAGE_ID = b"message-id:"


class Witness:
    """Appends to one file; safe for several processes (one write call a line)."""

    def __init__(self, path: Path, *, keep: Path | None = None) -> None:
        """``keep``: a folder that gets every message's bytes as ``<sha256>.eml`` (tests)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._encode = msgspec.json.Encoder().encode
        self._keep = keep
        self.counts: Counter[str] = Counter()

    def write(
        self, provider: str, client: str, sender: str, recipient: str, data: bytes, at: float
    ) -> None:
        """Record one message for one recipient."""
        head = data[: data.find(b"\r\n\r\n") + 2] if b"\r\n\r\n" in data else data
        digest = hashlib.sha256(data).hexdigest()
        line = self._encode(
            {
                "at": at,
                "provider": provider,
                "client": client,
                "sender": sender,
                "recipient": recipient,
                "ref": _field(head, REFERENCE),
                "message_id": _field(head, MESSAGE_ID),
                "sha256": digest,
                "size": len(data),
            }
        )
        os.write(self._fd, line + b"\n")
        if self._keep is not None:
            self._keep.mkdir(parents=True, exist_ok=True)
            (self._keep / f"{digest}.eml").write_bytes(data)
        self.counts[provider] += 1

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a witness file; a half-written last line (the writer died) is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line)


def _field(head: bytes, name: bytes) -> str | None:
    lower = head.lower()
    start = 0 if lower.startswith(name) else lower.find(b"\r\n" + name)
    if start < 0:
        return None
    start = lower.index(name, start) + len(name)
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else None].strip().decode("ascii", "replace")
