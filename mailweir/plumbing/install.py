"""What an installation makes once and keeps: its master key, and hashes keyed by it.

The master key signs VERP and unsubscribe tokens and keys the hashes that stand for addresses in Redis.
It comes from ``MAILWEIR_SECRET`` (fleets: the same for every process) or is made at first start in
``<data>/secret`` with mode 600.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from hashlib import blake2b
from pathlib import Path

from mailweir.plumbing.settings import Settings

KEY_BYTES = 32


class InstallError(Exception):
    """A file of the installation cannot be read or made; the message says which and what to do."""


def make_once(path: Path, text: str) -> str:
    """The content of ``path``, made with mode 600 and ``text`` if it was not there.

    Safe against two processes starting together: the first link wins. Raises :class:`InstallError`.
    """
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return path.read_text().strip()
        finally:
            draft.unlink()
        return text
    except OSError as error:
        raise InstallError(
            f"cannot make {path}: {error.strerror}; is the data directory writable?"
        ) from error


def master_key(settings: Settings) -> bytes:
    """The installation's 32-byte key. Raises :class:`InstallError`."""
    if settings.secret is not None:
        text = settings.secret.get_secret_value()
        if len(text) < 16:
            raise InstallError(
                "MAILWEIR_SECRET is shorter than 16 characters; use 32 random bytes in hex"
            )
        return hashlib.sha256(b"mailweir:" + text.encode()).digest()
    text = make_once(settings.data / "secret", secrets.token_hex(KEY_BYTES))
    return hashlib.sha256(b"mailweir:" + text.encode()).digest()


def derive(key: bytes, purpose: str) -> bytes:
    """A key of its own for one purpose, so that a token of one kind never passes for another."""
    return hmac.new(key, purpose.encode(), hashlib.sha256).digest()


def keyed_hash(key: bytes, text: str) -> str:
    """What stands for an address where no address may be: 16 hex characters of keyed BLAKE2b (RFC 7693 2.9).

    Twice as fast as HMAC-SHA256, and it keeps the interpreter lock: letting it go costs an event loop more
    than the hash."""
    return blake2b(text.encode(), key=key, digest_size=8).hexdigest()
