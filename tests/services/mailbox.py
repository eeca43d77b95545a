"""A maildir some server writes to."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


class Maildir:
    """``log`` is asked for what to show when mail does not come."""

    def __init__(self, folder: Path, log: Callable[[], str]) -> None:
        self._folder = folder / "new"
        self._log = log
        self._seen: set[Path] = set()

    def arrived(self, count: int = 1, within: float = 20.0) -> list[bytes]:
        """The next ``count`` mails, as stored (LF line ends)."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            new = [p for p in sorted(self._folder.glob("*")) if p not in self._seen]
            if len(new) >= count:
                self._seen.update(new)
                return [p.read_bytes() for p in new]
            time.sleep(0.02)  # another program writes there; there is no signal to wait for
        raise AssertionError(f"{count} mails did not arrive; log:\n{self._log()[-3000:]}")


def body_of(raw: bytes) -> bytes:
    """The body of a stored mail, with the line ends it had on the wire."""
    return raw.split(b"\n\n", 1)[1].replace(b"\n", b"\r\n")
