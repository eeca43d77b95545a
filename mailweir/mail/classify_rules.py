"""The rules of classification, read once from the YAML files in ``data`` and compiled.

A rule's patterns are ordinary regular expressions over the reply's plain text (mailweir.mail.reply). Trying
hundreds of them costs more than a reply is worth, so each pattern is asked only where one of the words it
cannot match without occurs in the text; those words are read off the pattern itself (needed_words.py).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

import msgspec

from mailweir.mail.needed_words import SHORTEST, literals
from mailweir.mail.providers import read_data

FIRM, DOUBTFUL, LOOSE = range(3)


class CategoryRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a category means; see rules_categories.yaml."""

    cls: str = msgspec.field(name="class")
    blame: str
    retry4: str
    retry5: str
    suppress: dict[str, Any] | None = None


class CodeRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One enhanced code; see enhanced_codes.yaml. ``weak``: any text wins."""

    cat: str | None = None
    cat4: str | None = None
    cat5: str | None = None
    weak: bool = False
    note: str = ""


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    category: str = msgspec.field(name="is")
    source: str
    text: str | list[str] = []
    unless: str | None = None
    enhanced: list[str] = []
    code: list[int] = []
    provider: list[str] = []
    permanent: bool | None = None
    retry_after: float | None = None
    stage_not: list[str] = []
    doubtful: bool = False


class Rule(NamedTuple):
    """One rule, without its patterns."""

    id: str
    category: str
    source: str
    unless: str | None
    enhanced: frozenset[str]  # "7.515"; empty: any
    codes: frozenset[int]
    providers: frozenset[str]
    permanent: bool | None
    retry_after: float | None
    stage_not: frozenset[str]
    doubt: int  # FIRM, DOUBTFUL, LOOSE
    named: bool  # what one provider or program says, not words anyone may use


class Asked(NamedTuple):
    """What is known of a reply beside its text."""

    code: int | None
    enhanced: str | None
    permanent: bool
    provider: str | None
    stage: str | None


_Veto = tuple[tuple[str, ...], str]  # (words it needs, regular expression)


class Rules:
    """Everything the data files say, ready to be asked."""

    def __init__(
        self, categories: dict[str, CategoryRow], codes: dict[str, CodeRow], rows: list[Rule]
    ) -> None:
        self.categories = categories
        self.codes = codes
        self.rules = rows
        self.vetoes: list[_Veto] = []  # no text is hard beside these
        self.doubts: list[_Veto] = []  # nor a doubtful one beside these
        self.patterns: list[tuple[int, str]] = []  # (rule, regular expression), in order
        self._always: list[int] = []
        self._foreign: list[int] = []  # the same, and never in an ASCII text
        self._words: dict[
            str, list[int]
        ] = {}  # word -> patterns that need it (or another of theirs)
        self._index: dict[str, list[str]] = {}  # three letters -> words that hold them
        self._textless: list[int] = []  # rules decided by their codes alone

    def add(self, rule: int, pattern: str) -> None:
        """Append a pattern of rule number ``rule``."""
        number = len(self.patterns)
        self.patterns.append((rule, pattern))
        words = literals(pattern)
        if not words:
            (self._always if pattern.isascii() else self._foreign).append(number)
        for word in words:
            if word not in self._words:
                self._words[word] = []
                self._index.setdefault(word[:SHORTEST], []).append(word)
            self._words[word].append(number)

    def add_textless(self, rule: int) -> None:
        """A rule without patterns."""
        self._textless.append(rule)

    def first(self, text: str, asked: Asked) -> Rule | None:
        """The first rule that speaks of this reply."""
        best: int | None = None
        for number in self._textless:
            if self._fits(self.rules[number], text, asked):
                best = number
                break
        for number in self.candidates(text):
            rule, pattern = self.patterns[number]
            if best is not None and rule > best:
                break
            if _compiled(pattern).search(text) and self._fits(self.rules[rule], text, asked):
                return self.rules[rule]
        return None if best is None else self.rules[best]

    def candidates(self, text: str) -> list[int]:
        """Numbers of the patterns that may match, in order: no other can."""
        index, words = self._index, self._words
        grams = {text[i : i + SHORTEST] for i in range(len(text))}
        found = set(self._always)
        if not text.isascii():
            found.update(self._foreign)
        for gram in grams & index.keys():
            for word in index[gram]:
                if word in text:
                    found.update(words[word])
        return sorted(found)

    def unsure(self, text: str, enhanced: str | None) -> bool:
        """Whether a text that is not plainly about the recipient may be about us: words about us stand in it,
        and no code names the recipient."""
        if enhanced is not None and enhanced[2:4] == "1.":
            return False
        return _beside(self.vetoes, text) or _beside(self.doubts, text)

    def _fits(self, rule: Rule, text: str, asked: Asked) -> bool:
        if rule.permanent is not None and rule.permanent is not asked.permanent:
            return False
        if rule.providers and asked.provider not in rule.providers:
            return False
        if rule.codes and asked.code not in rule.codes:
            return False
        if rule.enhanced and (asked.enhanced is None or asked.enhanced[2:] not in rule.enhanced):
            return False
        if asked.stage in rule.stage_not:
            return False
        if (
            not rule.named
            and self.categories[rule.category].cls == "hard"
            and (_beside(self.vetoes, text) or (rule.doubt and self.unsure(text, asked.enhanced)))
        ):
            return False
        return not (rule.unless and _compiled(rule.unless).search(text))


def _beside(vetoes: list[_Veto], text: str) -> bool:
    """Whether words about us stand in a text: what is unknown or closed beside them may be ours."""
    return any(
        any(word in text for word in words) and _compiled(pattern).search(text)
        for words, pattern in vetoes
    )


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@cache
def rules() -> Rules:
    """The rules in the order they are tried. Raises ``msgspec.ValidationError`` for a data file that is
    wrong, which the tests would have found."""
    book = Rules(
        msgspec.convert(read_data("rules_categories.yaml")["categories"], dict[str, CategoryRow]),
        msgspec.convert(read_data("enhanced_codes.yaml")["codes"], dict[str, CodeRow]),
        [],
    )
    for name in ("rules_providers.yaml", "rules_text.yaml", "rules_words.yaml"):
        raw = read_data(name)
        macros: dict[str, str] = raw.get("macros", {})
        for kind, found in (("never_hard", book.vetoes), ("unsure_beside", book.doubts)):
            for text in raw.get(kind, []):
                pattern = _expand(text, macros)
                found.append((literals(pattern), pattern))
        for fields in raw["rules"]:
            row = msgspec.convert(fields, _Row)
            if row.category not in book.categories:
                raise msgspec.ValidationError(f"{name}: {row.id}: no category {row.category!r}")
            number = len(book.rules)
            doubt = LOOSE if name == "rules_words.yaml" else int(row.doubtful)
            book.rules.append(_rule(row, macros, doubt, name == "rules_providers.yaml"))
            for text in [row.text] if isinstance(row.text, str) else row.text:
                book.add(number, _expand(text, macros))
            if not row.text:
                book.add_textless(number)
    return book


def _rule(row: _Row, macros: dict[str, str], doubt: int, named: bool) -> Rule:
    return Rule(
        row.id,
        row.category,
        row.source,
        _expand(row.unless, macros) if row.unless else None,
        frozenset(code for item in row.enhanced for code in _codes(item)),
        frozenset(row.code),
        frozenset(row.provider),
        row.permanent,
        row.retry_after,
        frozenset(row.stage_not),
        doubt,
        named,
    )


def _expand(text: str, macros: dict[str, str]) -> str:
    for name, value in macros.items():
        text = text.replace("{" + name + "}", value)
    text = text.replace(" ~ ", ".{0,50}?").replace(" ~", ".{0,50}?").replace("~ ", ".{0,50}?")
    text = text.replace("~", ".{0,50}?")
    return re.sub(r"\((?!\?)", "(?:", text.replace(r"\(", "\0")).replace("\0", r"\(")


def _codes(item: str) -> list[str]:
    """``7.509``; ``4.7.26`` (the class is not looked at); ``7.606-7.649``."""
    first, _, last = item.partition("-")
    parts = first.split(".")[-2:]
    if not last:
        return [".".join(parts)]
    low, high = int(parts[1]), int(last.split(".")[-1])
    return [f"{parts[0]}.{detail}" for detail in range(low, high + 1)]
