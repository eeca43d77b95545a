"""What is wrong with a policy file: where, which key, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from mailweir.contracts.policy import Policy


class Severity(StrEnum):
    """Errors keep a policy from being applied, warnings do not."""

    ERROR = "error"
    WARNING = "warning"


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finding. ``line`` counts from 1; ``key`` is the path of keys, as ``pools.news.weight``."""

    file: str
    line: int
    key: str
    severity: Severity
    message: str
    right: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: {self.severity.value}: "
        key = f"{self.key}: " if self.key else ""
        return f"{place}{key}{self.message}" + (f"; {self.right}" if self.right else "")


class Loaded(msgspec.Struct, frozen=True):
    """What a file means as far as it could be read, and everything that is wrong with it."""

    policy: Policy
    problems: tuple[Problem, ...]
    complete: bool = True  # False: names and lint are not checked before what is wrong is mended

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What keeps it from being applied."""
        return tuple(p for p in self.problems if p.severity is Severity.ERROR)

    @property
    def ok(self) -> bool:
        """Whether it may be applied."""
        return not self.errors


class PolicyRefused(Exception):
    """The policy has errors; the running one stays in force."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


def closest(name: str, known: Iterable[str]) -> str:
    """``did you mean ...?``, or the list of what is known."""
    options = sorted(known)
    match = difflib.get_close_matches(name.lower(), options, n=1, cutoff=0.6)
    if match:
        return f"did you mean {match[0]!r}?"
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f"known here: {shown}" if options else "nothing of that kind is defined"
