"""Kinds of values a policy may hold: each reads a YAML node and describes itself as JSON schema.

One description serves the loader, the schema for editors and the reference, so they cannot disagree.
A kind that meets a bad value reports it to the reader and returns :data:`BAD`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mailweir.contracts.policy import Throttle
from router.policy.document import line_of, pairs, scalar
from router.policy.problems import Problem, Severity, closest


class _Bad:
    """The mark of a value that was refused."""


BAD: Final = _Bad()
Path = tuple[str | int, ...]


class Reader:
    """Collects problems and remembers the line of every key."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.lines: dict[Path, int] = {}

    def say(
        self,
        where: Path | int,
        path: Path,
        message: str,
        right: str = "",
        severity: Severity = Severity.ERROR,
    ) -> None:
        """Report a problem at a line, or at the line of a path (or of its nearest known parent)."""
        line = where if isinstance(where, int) else self.line(where)
        self.problems.append(Problem(self.file, line, dotted(path), severity, message, right))

    def warn(self, where: Path | int, path: Path, message: str, right: str = "") -> None:
        """Report something that works and is probably not meant."""
        self.say(where, path, message, right, Severity.WARNING)

    def line(self, path: Path) -> int:
        """The line of a path, or of the nearest parent that is in the file."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[:-1]
        return self.lines.get((), 1)


def dotted(path: Path) -> str:
    """``pools.news.sources[2]``."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else (f".{part}" if out else part)
    return out


class Kind(Protocol):
    """What every kind can do."""

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        """The value, or BAD after reporting why."""

    def schema(self) -> dict[str, Any]:
        """JSON schema (2020-12) of the kind."""


def _plain(node: Node, path: Path, reader: Reader, right: str) -> Any:
    if isinstance(node, ScalarNode):
        return scalar(node)
    what = "a list" if isinstance(node, SequenceNode) else "a mapping"
    reader.say(line_of(node), path, f"this is {what}", right)
    return BAD


@dataclass(frozen=True)
class Text:
    """Text; ``choices`` or a ``pattern`` narrow it. ``secret``: never shown in a message."""

    choices: tuple[str, ...] = ()
    pattern: str = ""
    says: str = "text"
    secret: bool = False

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        value = _plain(node, path, reader, self.says)
        if value is BAD:
            return BAD
        if isinstance(value, bool) or value is None:
            reader.say(line_of(node), path, "this is not text", f"{self.says}, in quotes if needed")
            return BAD
        value = str(node.value)
        if self.choices and value not in self.choices:
            reader.say(line_of(node), path, f"{value!r} is not known", closest(value, self.choices))
            return BAD
        if (self.pattern and re.fullmatch(self.pattern, value) is None) or not value.strip():
            shown = "this value" if self.secret else repr(value)
            reader.say(line_of(node), path, f"{shown} is not {self.says}", f"write {self.says}")
            return BAD
        return value

    def schema(self) -> dict[str, Any]:
        out: dict[str, Any] = {"type": "string", "minLength": 1}
        if self.choices:
            out = {"enum": list(self.choices)}
        if self.pattern:
            out["pattern"] = f"^(?:{self.pattern})$"
        return out


@dataclass(frozen=True)
class Number:
    """A number from ``low`` to ``high``; ``whole``: no fraction."""

    low: float
    high: float
    whole: bool = False

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        kind = "a whole number" if self.whole else "a number"
        right = f"write {kind} from {self.low:g} to {self.high:g}"
        value = _plain(node, path, reader, right)
        if value is BAD:
            return BAD
        if isinstance(value, bool) or not isinstance(value, int | float):
            reader.say(line_of(node), path, f"this is not {kind}", right)
            return BAD
        if self.whole and value != int(value):
            reader.say(line_of(node), path, f"{value:g} is not {kind}", right)
            return BAD
        if not self.low <= value <= self.high:
            reader.say(line_of(node), path, f"{value:g} is out of range", right)
            return BAD
        return int(value) if self.whole else float(value)

    def schema(self) -> dict[str, Any]:
        kind = "integer" if self.whole else "number"
        return {"type": kind, "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class Flag:
    """true or false."""

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        value = _plain(node, path, reader, "true or false")
        if value is BAD or isinstance(value, bool):
            return value
        reader.say(line_of(node), path, "this is not a flag", "write true or false")
        return BAD

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


_UNITS = {"s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0}
_UNITS |= {"h": 3600.0, "hour": 3600.0, "d": 86400.0, "day": 86400.0}


@dataclass(frozen=True)
class Duration:
    """A span: ``30s``, ``5m``, ``4h``, ``3d``; a bare number is seconds."""

    low: float = 0.0
    high: float = 366 * 86400.0

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        right = "write a span such as 30s, 5m, 4h or 3d"
        value = _plain(node, path, reader, right)
        if value is BAD:
            return BAD
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip().lower())
        unit = (
            match[2].removesuffix("s")
            if match and len(match[2]) > 1
            else (match[2] if match else "")
        )
        if match is None or isinstance(value, bool) or (unit and unit not in _UNITS):
            reader.say(line_of(node), path, f"{value!r} is not a span of time", right)
            return BAD
        seconds = float(match[1]) * _UNITS.get(unit, 1.0)
        if not self.low <= seconds <= self.high:
            limits = f"from {self.low:g}s to {self.high:g}s"
            reader.say(line_of(node), path, f"{value!r} is out of range", f"{right}, {limits}")
            return BAD
        return seconds

    def schema(self) -> dict[str, Any]:
        pattern = r"^\d+(\.\d+)?\s*(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?)?$"
        return {"anyOf": [{"type": "string", "pattern": pattern}, {"type": "number", "minimum": 0}]}


MAX_RATE = 1_000_000.0  # jobs per second


@dataclass(frozen=True)
class Rate:
    """A throttle: ``500/min``, ``10/s``, ``2000/h``, ``50000/day``. ``bare``: seconds a bare number
    is per (the article's template); ``none`` allows ``none``."""

    bare: float | None = None
    none: bool = False

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        right = "write a rate such as 500/min, 10/s, 2000/h or 50000/day"
        value = _plain(node, path, reader, right)
        if value is BAD:
            return BAD
        if self.none and (value is None or value == "none"):
            return None
        quoted = isinstance(node, ScalarNode) and node.style in ("'", '"')
        if self.bare is not None and isinstance(value, int) and not isinstance(value, bool):
            count, per = value, self.bare
        else:
            match = re.fullmatch(r"(\d{1,12})\s*/\s*([a-z]+)", str(value).strip().lower())
            unit = match[2] if match else ""
            unit = unit.removesuffix("s") if len(unit) > 1 else unit
            if match is None or unit not in _UNITS:
                shown = f'"{value}"' if quoted else f"{value}"
                reader.say(line_of(node), path, f"{shown} is not a rate", right)
                return BAD
            count, per = int(match[1]), _UNITS[unit]
        if count < 1 or count / per > MAX_RATE:
            reader.say(
                line_of(node),
                path,
                f"{value} is out of range",
                f"{right}, at least 1, at most 1,000,000/s",
            )
            return BAD
        return Throttle(count, per)

    def schema(self) -> dict[str, Any]:
        pattern = r"^[1-9]\d*\s*/\s*(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?)$"
        text: dict[str, Any] = {"type": "string", "pattern": pattern}
        options = [text]
        if self.bare is not None:
            options.append({"type": "integer", "minimum": 1})
        if self.none:
            options.append({"enum": ["none", None]})
        return text if len(options) == 1 else {"anyOf": options}


@dataclass(frozen=True)
class ListOf:
    """A list; a single value may stand for a list of one."""

    item: Kind
    low: int = 0
    high: int = 10_000

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        items = node.value if isinstance(node, SequenceNode) else [node]
        if not self.low <= len(items) <= self.high:
            span = f"{self.low} to {self.high}" if self.low else f"at most {self.high}"
            reader.say(line_of(node), path, f"{len(items)} entries", f"{span} are possible")
            return BAD
        out = []
        for i, item in enumerate(items):
            here = (*path, i)
            reader.lines[here] = line_of(item)
            value = self.item.read(item, here, reader)
            if value is not BAD:
                out.append(value)
        return tuple(out)

    def schema(self) -> dict[str, Any]:
        item = self.item.schema()
        return {"anyOf": [{"type": "array", "items": item, "maxItems": self.high}, item]}


@dataclass(frozen=True)
class MapOf:
    """A mapping from names to values of one kind."""

    value: Kind
    low: int = 0
    name: str = r"[^\s|]{1,64}"  # names become parts of keys such as source|provider

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        if not isinstance(node, MappingNode):
            reader.say(line_of(node), path, "this is not a mapping", "write name: value pairs")
            return BAD
        out: dict[str, Any] = {}
        for key, child in pairs(node):
            name = str(key.value) if isinstance(key, ScalarNode) else ""
            here = (*path, name)
            if re.fullmatch(self.name, name) is None:
                right = "1 to 64 characters without spaces and |"
                reader.say(line_of(key), here, "this is not a name", right)
                continue
            if name in out or here in reader.lines:
                first = reader.lines.get(here, 0)
                right = f"it is first defined on line {first}; keep one"
                reader.say(line_of(key), here, f"{name!r} is defined twice", right)
                continue
            reader.lines[here] = line_of(key)
            value = self.value.read(child, here, reader)
            if value is not BAD:
                out[name] = value
        if len(out) < self.low and not reader.problems:
            reader.say(line_of(node), path, "this is empty", f"at least {self.low} entry")
        return out

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^{self.name}$"},
            "additionalProperties": self.value.schema(),
        }


@dataclass(frozen=True)
class Key:
    """A key of a record: its kind, what it means, whether it must be there."""

    kind: Kind
    doc: str
    required: bool = False


@dataclass(frozen=True)
class Record:
    """A mapping with known keys. ``short``: a kind that may stand for the whole record, as the value
    of the key ``short_key``. ``aliases``: other spellings of keys. ``build`` makes the result."""

    keys: Mapping[str, Key]
    build: Callable[[dict[str, Any]], Any] = field(default=lambda values: values)
    short_key: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)  # unknown key -> what would be right
    one_of: Sequence[tuple[str, ...]] = ()

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        if not isinstance(node, MappingNode):
            if self.short_key:
                value = self.keys[self.short_key].kind.read(node, path, reader)
                return BAD if value is BAD else self.build({self.short_key: value})
            right = f"write a mapping with keys such as {', '.join(list(self.keys)[:4])}"
            reader.say(line_of(node), path, "this is not a mapping", right)
            return BAD
        values: dict[str, Any] = {}
        bad = False
        for key, child in pairs(node):
            name = str(key.value) if isinstance(key, ScalarNode) else ""
            here = (*path, name)
            known = self.aliases.get(name, name)
            if known not in self.keys:
                right = self.hints.get(name) or closest(name, self.keys)
                reader.say(line_of(key), here, f"unknown key {name!r}", right)
                bad = True
                continue
            if known in values or (*path, known) in reader.lines:
                first = reader.line((*path, known))
                right = f"it is first given on line {first}; keep one"
                reader.say(line_of(key), here, f"{name!r} is given twice", right)
                bad = True
                continue
            reader.lines[(*path, known)] = reader.lines[here] = line_of(key)
            value = self.keys[known].kind.read(child, here, reader)
            if value is BAD:
                bad = True
            else:
                values[known] = value
        for name, spec in self.keys.items():
            if spec.required and name not in values and (*path, name) not in reader.lines:
                reader.say(line_of(node), (*path, name), f"{name!r} is missing", spec.doc)
                bad = True
        for group in self.one_of:
            given = [name for name in group if name in values]
            if len(given) > 1:
                reader.say(
                    reader.line((*path, given[1])),
                    (*path, given[1]),
                    f"{given[1]!r} beside {given[0]!r}",
                    f"only one of {', '.join(group)}",
                )
                bad = True
        return BAD if bad else self.build(values)

    def schema(self) -> dict[str, Any]:
        properties = {n: {**k.kind.schema(), "description": k.doc} for n, k in self.keys.items()}
        out: dict[str, Any] = {
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
        }
        for alias, name in self.aliases.items():
            properties[alias] = properties[name]
        required = [n for n, k in self.keys.items() if k.required]
        if required:
            out["required"] = required
        if self.short_key:
            return {"anyOf": [out, self.keys[self.short_key].kind.schema()]}
        return out


@dataclass(frozen=True)
class Converted:
    """A kind whose value is made into something else; ``make`` raises ValueError with what is right."""

    inner: Kind
    make: Callable[[Any], Any]

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        value = self.inner.read(node, path, reader)
        if value is BAD:
            return BAD
        try:
            return self.make(value)
        except ValueError as error:
            message, _, right = str(error).partition("; ")
            where = line_of(node) if isinstance(node, ScalarNode) else path
            reader.say(where, path, message, right)
            return BAD

    def schema(self) -> dict[str, Any]:
        return self.inner.schema()
