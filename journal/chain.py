"""The arithmetic of the chain: record -> digest, digests -> segment, segment on segment.

A record is its columns' values in order as JSON, so one changed character changes its digest; a
segment's digest covers its records in order; each link covers the one before. Whoever alters, drops or
inserts a record must recompute every later link, and the last one may be kept elsewhere (``audit export``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

GENESIS = bytes(32)
"""What the first link follows."""

_encode = msgspec.json.Encoder().encode


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One sealed record inside a segment's body."""

    kind: str  # decision | attempt | feedback
    ref: int  # id of the record
    digest: str  # hex


def digest_of(kind: str, values: Sequence[Any]) -> str:
    """Digest of one record, hex. Floats are written in their shortest exact form. Empty columns at the end
    do not count, so that a table may get further ones."""
    last = len(values)
    while last and values[last - 1] is None:
        last -= 1
    return hashlib.sha256(_encode([kind, *values[:last]])).hexdigest()


def segment_digest(entries: Iterable[Entry]) -> bytes:
    """Digest of a segment: kinds, ids and digests of its records, in order."""
    total = hashlib.sha256()
    for entry in entries:
        total.update(f"{entry.kind}:{entry.ref}:{entry.digest}\n".encode())
    return total.digest()


def link(before: bytes, segment: bytes) -> bytes:
    """The next link of the chain."""
    return hashlib.sha256(before + segment).digest()


def broken_links(
    segments: Sequence[tuple[int, bytes, bytes, Sequence[Entry]]], before: bytes
) -> list[int]:
    """Sequence numbers whose digest or link is not what their entries and predecessor say.

    Each segment is (sequence number, digest, link, entries). After a broken one the chain is followed
    from what is stored, so that one alteration is reported once."""
    broken = []
    for number, digest, stored, entries in segments:
        if segment_digest(entries) != digest or link(before, digest) != stored:
            broken.append(number)
        before = stored
    return broken
