"""The words a regular expression cannot match without, read off the pattern itself: asking for a word in a
text is far cheaper than asking the pattern."""

from __future__ import annotations

import re

SHORTEST = 3
"""Shorter words stand in most texts and would sort out nothing."""

_QUANTIFIER = re.compile(r"[?*+]\??|\{\d+(?:,\d*)?\}\??")


def literals(pattern: str) -> tuple[str, ...]:
    """Words of which every text the pattern matches holds at least one; none when that is unknown.

    Understands what our patterns are written in: literal text, escapes, classes, groups, alternatives
    and quantifiers. Anything else ends a run of literal text.
    """
    found, end = _alternatives(pattern, 0)
    return () if end != len(pattern) or found is None else tuple(sorted(found))


def _alternatives(pattern: str, at: int) -> tuple[frozenset[str] | None, int]:
    words: frozenset[str] | None = frozenset()
    while True:
        found, at = _sequence(pattern, at)
        words = None if found is None or words is None else words | found
        if at >= len(pattern) or pattern[at] == ")":
            return words, at
        at += 1  # over "|"


def _sequence(pattern: str, at: int) -> tuple[frozenset[str] | None, int]:
    """The best set of needed words in one alternative, and where it ends (at ``|``, ``)`` or the end)."""
    best: frozenset[str] | None = None
    run = ""

    def offer(words: frozenset[str] | None) -> None:
        nonlocal best
        if words and min(map(len, words)) >= SHORTEST:
            key = min(map(len, words)) - len(words) / 8
            if best is None or key > min(map(len, best)) - len(best) / 8:
                best = words

    while at < len(pattern) and pattern[at] not in "|)":
        char = pattern[at]
        words: frozenset[str] | None = None
        literal = ""
        if char == "(":
            body = at + (3 if pattern.startswith("(?:", at) else 1)
            words, at = _alternatives(pattern, body)
            at += 1
        elif char == "[":
            at = pattern.index("]", at + 2) + 1
        elif char == "\\":
            literal = "" if pattern[at + 1].isalnum() else pattern[at + 1]
            at += 2
        elif char in ".^$":
            at += 1
        else:
            literal = char
            at += 1
        quantifier = _QUANTIFIER.match(pattern, at) if pattern[at : at + 1] in "?*+{" else None
        if quantifier:
            at = quantifier.end()
            optional = quantifier[0][0] in "?*" or quantifier[0].startswith("{0")
            if optional:
                words, literal = None, ""
            elif literal:  # one or more: the run ends with the first
                offer(frozenset({run + literal}))
                run, literal = "", ""
                continue
        if literal:
            run += literal
            continue
        if run:
            offer(frozenset({run}))
        run = ""
        offer(words)
    if run:
        offer(frozenset({run}))
    return best, at
