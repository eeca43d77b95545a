"""Identifiers: 63-bit, time-ordered, made by the caller, written as 13 characters.

An id is ``milliseconds since 2020-01-01 UTC << 22 | 22 random bits``: rows land at the end of their
index, two processes need no agreement, and the text form survives JSON readers that know only doubles.
"""

from __future__ import annotations

import secrets
import time

EPOCH_MS = 1_577_836_800_000  # 2020-01-01T00:00:00Z in milliseconds
RANDOM_BITS = 22
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
_VALUES = {c: i for i, c in enumerate(_ALPHABET)}
TEXT_LENGTH = 13


class InvalidId(ValueError):
    """The text is not an id of ours: 13 characters of Crockford's base 32."""


def new_id(real_seconds: float | None = None, random_bits: int | None = None) -> int:
    """A new id. Time and chance may be given (tests); real time, since ids order rows, not policy."""
    ms = int((time.time() if real_seconds is None else real_seconds) * 1000) - EPOCH_MS
    chance = secrets.randbits(RANDOM_BITS) if random_bits is None else random_bits
    return (max(ms, 0) << RANDOM_BITS) | (chance & ((1 << RANDOM_BITS) - 1))


def new_ids(count: int) -> list[int]:
    """``count`` distinct ids, ascending, for rows written together."""
    first = new_id()
    return [first + i for i in range(count)]


def format_id(value: int) -> str:
    """The 13-character text of an id, as users see it."""
    out = []
    for _ in range(TEXT_LENGTH):
        out.append(_ALPHABET[value & 31])
        value >>= 5
    return "".join(reversed(out))


def parse_id(text: str) -> int:
    """The id behind its text form. Raises :class:`InvalidId`."""
    text = text.strip().lower()
    if len(text) != TEXT_LENGTH:
        raise InvalidId(f"an id has {TEXT_LENGTH} characters, this has {len(text)}")
    value = 0
    for char in text:
        digit = _VALUES.get(char)
        if digit is None:
            raise InvalidId(f"{char!r} is not a character of an id (Crockford base 32)")
        value = value << 5 | digit
    if value >= 1 << 63:
        raise InvalidId("this is larger than any id")
    return value
