"""Weighted rendezvous hashing: who leaves takes only its own keys along.

Weight handling after Schindelhauer and Schomaker (2005): the least ``-ln(u) / weight`` wins, ``u`` being
uniform for key and node together. Removing or weakening one of n nodes moves only that node's keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from math import log

_BITS = 30  # one digit of CPython's integers: a product of two costs half of one of 64 bits
_MASK = (1 << _BITS) - 1
_LOG_SCALE = _BITS * log(2)


def digest(text: str) -> int:
    """30 bits that stand for a text, the same in every process and version of Python."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") & _MASK


def seed_of(name: str) -> int:
    """A node's multiplier: odd, so that no bit of a key is lost."""
    return digest(name) | 1


def distances(key: int, nodes: Iterable[tuple[int, float]]) -> list[float]:
    """How far each node (its seed, 1 / its weight) is from a key (:func:`digest`); least wins.

    ``u`` is the key, already uniform, times the node's random odd multiplier modulo 2**30: one
    multiplication a node, and two nodes' values are as unrelated as their multipliers.
    """
    return [(_LOG_SCALE - log(key * seed & _MASK | 1)) * inverse for seed, inverse in nodes]
