"""Identifiers: 63-bit, time-ordered, made by the caller, written as 13 characters.

An id is ``milliseconds since 2020-01-01 UTC << 22 | node << 10 | sequence``: rows land at the end of
their index, and the text form survives JSON readers that know only doubles. The node (12 bits) is a
number no other running process has (the spool gives it, :func:`use_node`); until then it is a random
one. Random bits alone do not do: at 4,000 ids a second 22 of them repeat every ten minutes.
"""

from __future__ import annotations

import os
import secrets
import threading
import time

EPOCH_MS = 1_577_836_800_000  # 2020-01-01T00:00:00Z in milliseconds
RANDOM_BITS = 22  # below the milliseconds: node and sequence
SEQUENCE_BITS = 10
_SEQUENCE = (1 << SEQUENCE_BITS) - 1
NODES = 1 << (RANDOM_BITS - SEQUENCE_BITS)
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]  # two characters a step
_VALUES = {c: i for i, c in enumerate(_ALPHABET)}
TEXT_LENGTH = 13


class InvalidId(ValueError):
    """The text is not an id of ours: 13 characters of Crockford's base 32."""


class _Maker:
    """The ids of one process: strictly ascending, whatever the clock does.

    More than 1,024 in a millisecond borrow from the next ones."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.node = secrets.randbelow(NODES)
        self.last = 0  # milliseconds << SEQUENCE_BITS | sequence

    def one(self) -> int:
        now = (time.time_ns() // 1_000_000 - EPOCH_MS) << SEQUENCE_BITS
        with self.lock:
            n = self.last = max(now, self.last + 1)
            return n >> SEQUENCE_BITS << RANDOM_BITS | self.node << SEQUENCE_BITS | n & _SEQUENCE

    def make(self, count: int) -> list[int]:
        now = (time.time_ns() // 1_000_000 - EPOCH_MS) << SEQUENCE_BITS
        with self.lock:
            first = max(now, self.last + 1)
            self.last = first + count - 1
            middle = self.node << SEQUENCE_BITS
        return [
            n >> SEQUENCE_BITS << RANDOM_BITS | middle | n & _SEQUENCE
            for n in range(first, first + count)
        ]


_maker = _Maker()


def _in_child() -> None:
    global _maker
    _maker = _Maker()  # another node than the parent's


os.register_at_fork(after_in_child=_in_child)


def use_node(number: int) -> None:
    """Take this number (modulo 4,096) as the process' node. After a fork the child has a random one."""
    with _maker.lock:
        _maker.node = number % NODES


def new_id(real_seconds: float | None = None, random_bits: int | None = None) -> int:
    """A new id. With time and low bits given (tests) the id of just these; real time, since ids order
    rows, not policy."""
    if real_seconds is None and random_bits is None:
        return _maker.one()
    ms = int((time.time() if real_seconds is None else real_seconds) * 1000) - EPOCH_MS
    chance = secrets.randbits(RANDOM_BITS) if random_bits is None else random_bits
    return (max(ms, 0) << RANDOM_BITS) | (chance & ((1 << RANDOM_BITS) - 1))


def made_at(value: int) -> float:
    """Real Unix seconds at which an id was made, to the millisecond, by its maker's clock."""
    return ((value >> RANDOM_BITS) + EPOCH_MS) / 1000


def new_ids(count: int) -> list[int]:
    """``count`` distinct ids, ascending, for rows written together."""
    return _maker.make(count)


def format_id(value: int) -> str:
    """The 13-character text of an id, as users see it."""
    pairs = _PAIRS
    return (
        _ALPHABET[value >> 60 & 31]
        + pairs[value >> 50 & 1023]
        + pairs[value >> 40 & 1023]
        + pairs[value >> 30 & 1023]
        + pairs[value >> 20 & 1023]
        + pairs[value >> 10 & 1023]
        + pairs[value & 1023]
    )


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
