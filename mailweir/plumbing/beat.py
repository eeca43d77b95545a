"""Progress, not just life: a process touches its beat from the loop that does its work.

The supervisor of the embedded stack (or a probe of yours) restarts a process whose beat is old: a
process may be up and stand still. The file's path comes in ``MAILWEIR_BEAT``; without it nothing is
written.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

VARIABLE = "MAILWEIR_BEAT"
EVERY = 1.0  # real seconds between two touches at most


class Beat:
    """Touches its file at most once a second."""

    def __init__(self, path: Path | None = None) -> None:
        given = os.environ.get(VARIABLE)
        self._path = path or (Path(given) if given else None)
        self._last = 0.0

    def touch(self) -> None:
        """Say that the loop is alive."""
        now = time.monotonic()
        if self._path is not None and now - self._last >= EVERY:
            self._last = now
            self._path.touch()


def age(path: Path) -> float | None:
    """Real seconds since the last touch; None before the first."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
