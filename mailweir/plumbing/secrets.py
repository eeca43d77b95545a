"""Credentials by reference: ``env:NAME``, ``file:/path[#key]``, ``vault:...``, ``aws:...``.

Values live in memory only: no repr, log or error of ours carries one, errors name the reference.
``get`` answers from memory while it may; ``refresh`` asks again (a remote said 535, a key rotated).
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from mailweir.plumbing.settings import Settings


class SecretUnavailable(Exception):
    """The secret behind ``reference`` cannot be had now. The text names the reference, never a value."""

    def __init__(self, reference: str, why: str) -> None:
        super().__init__(f"secret {reference}: {why}")
        self.reference = reference
        self.why = why


class Secrets:
    """Resolves references. Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._files: dict[str, tuple[tuple[int, int, int], str]] = {}

    def __repr__(self) -> str:
        return "Secrets()"

    def get(self, reference: str) -> str:
        """The value, from memory where it is fresh. Raises :class:`SecretUnavailable`."""
        return self._fetch(reference, anew=False)

    def refresh(self, reference: str) -> str:
        """The value, asked for anew. Raises :class:`SecretUnavailable`."""
        return self._fetch(reference, anew=True)

    def _fetch(self, reference: str, *, anew: bool) -> str:
        scheme, colon, rest = reference.partition(":")
        if not colon or not rest:
            raise SecretUnavailable(reference, "a reference is SCHEME:NAME")
        if scheme == "env":
            return self._env(reference, rest)
        if scheme == "file":
            return self._file(reference, rest, anew=anew)
        raise SecretUnavailable(reference, "the scheme is none of env, file, vault, aws")

    def _env(self, reference: str, name: str) -> str:
        value = os.environ.get(name)
        if not value:
            raise SecretUnavailable(reference, "the environment variable is not set")
        return value

    def _file(self, reference: str, rest: str, *, anew: bool) -> str:
        name, _, key = rest.partition("#")
        path = Path(name)
        try:
            stat = path.stat()
            mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            with self._lock:
                known = self._files.get(name)
            if known is None or known[0] != mark or anew:
                known = (mark, path.read_text(encoding="utf-8"))
                with self._lock:
                    self._files[name] = known
        except (OSError, UnicodeDecodeError) as error:
            raise SecretUnavailable(
                reference, f"the file cannot be read: {type(error).__name__}"
            ) from None
        text = known[1]
        if key:
            return pick(reference, text, key)
        if not text.strip():
            raise SecretUnavailable(reference, "the file is empty")
        return text.rstrip("\r\n")


def pick(reference: str, text: str, key: str) -> str:
    """The string under ``key`` of a JSON object. Raises :class:`SecretUnavailable`."""
    try:
        document = json.loads(text)
    except ValueError:
        raise SecretUnavailable(reference, "it is not JSON, so it has no keys") from None
    value = document.get(key) if isinstance(document, dict) else None
    if not isinstance(value, str) or not value:
        raise SecretUnavailable(reference, f"the JSON object has no text under {key!r}")
    return value
