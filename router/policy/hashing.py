"""Weighted rendezvous hashing: who leaves takes only its own keys along.

Weight handling after Schindelhauer and Schomaker (2005): the least ``-ln(u) / weight`` wins, ``u`` being
uniform for key and node together. Removing or weakening one of n nodes moves only that node's keys.
"""

from __future__ import annotations

import hashlib
from math import log

_MASK = (1 << 64) - 1
_SCALE = 1.0 / (1 << 64)


def digest64(text: str) -> int:
    """64 bits that stand for a text, the same in every process and version of Python."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def distance(key: int, seed: int, weight: float) -> float:
    """How far a node (its ``seed``, its ``weight`` above 0) is from a key; the nearest node wins."""
    x = key ^ seed  # splitmix64's finalizer: every bit of both reaches every bit of the result
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    x ^= x >> 31
    return -log((x + 0.5) * _SCALE) / weight
