"""Patterns of rules: globs with ``|`` for alternatives, case-insensitive."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable

_WILD = re.compile(r"[*?\[]")

Test = Callable[[str], bool]


def alternatives(values: Iterable[str]) -> tuple[str, ...]:
    """Every single pattern of ``values``, lower case: ``(gmail|Yahoo)`` is ``gmail`` and ``yahoo``."""
    out: list[str] = []
    for value in values:
        text = value.strip()
        if text.startswith("(") and text.endswith(")"):
            text = text[1:-1]
        out.extend(part.strip().lower() for part in text.split("|") if part.strip())
    return tuple(out)


def domains(values: Iterable[str]) -> tuple[str, ...]:
    """Alternatives of a domain pattern; a leading ``@`` (``@example.com``) is dropped."""
    return tuple(part.removeprefix("@").removesuffix(".") for part in alternatives(values))


def is_exact(pattern: str) -> bool:
    """Whether a single pattern has no wildcard."""
    return _WILD.search(pattern) is None


def suffix_of(pattern: str) -> str | None:
    """``example.com`` for ``*.example.com``; None for any other wildcard pattern."""
    rest = pattern.removeprefix("*.")
    return rest if rest != pattern and is_exact(rest) else None


def test_of(patterns: tuple[str, ...]) -> Test:
    """A function that tells whether a lower-case text matches any of the single patterns."""
    exact = frozenset(p for p in patterns if is_exact(p))
    wild = [fnmatch.translate(p) for p in patterns if not is_exact(p)]
    if not wild:
        return exact.__contains__
    match = re.compile("|".join(f"(?:{w})" for w in wild), re.DOTALL).match
    if not exact:
        return lambda text: match(text) is not None
    return lambda text: text in exact or match(text) is not None
