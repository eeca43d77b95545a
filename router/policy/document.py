"""YAML text to nodes that know their lines, safely: no tags of Python, no bombs, nothing oversized."""

from __future__ import annotations

from collections.abc import Iterator

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 30
MAX_NODES = 100_000  # after aliases are followed
_CORE = "tag:yaml.org,2002:"
_ALLOWED = frozenset(
    _CORE + t for t in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge")
)


class Unreadable(Exception):
    """The file cannot be read as plain YAML at all."""

    def __init__(self, line: int, message: str, right: str) -> None:
        self.line, self.message, self.right = line, message, right
        super().__init__(message)


def line_of(node: Node) -> int:
    """The line a node begins on, counted from 1."""
    return int(node.start_mark.line) + 1


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return int(mark.line) + 1 if mark is not None else 1


def parse(text: str | bytes) -> MappingNode:
    """The root mapping of the only document. Raises :class:`Unreadable`."""
    decoded = _decode(text)
    try:
        _check_events(decoded)
        node = yaml.compose(decoded, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise Unreadable(
            line, f"not YAML: {error.problem}", "check indentation and quotes"
        ) from None
    except yaml.YAMLError as error:
        place = getattr(error, "position", 0)
        line = decoded[:place].count("\n") + 1 if isinstance(place, int) else 1
        raise Unreadable(line, "not YAML: a character is not allowed", "plain UTF-8 text") from None
    if node is None:
        raise Unreadable(1, "the file is empty", "at least sources, pools and rules")
    if not isinstance(node, MappingNode):
        raise Unreadable(
            line_of(node), "the file is not a mapping", "keys such as sources: and pools:"
        )
    _check_nodes(node)
    return node


def _decode(text: str | bytes) -> str:
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise Unreadable(1, f"the file has {size:,} bytes", f"at most {MAX_BYTES:,}")
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        raise Unreadable(
            line, f"byte {error.start} is not UTF-8", "save the file as UTF-8"
        ) from None


def _check_events(text: str) -> None:
    """Depth before anything recursive sees the text; one document only."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = _line(event)
                raise Unreadable(line, f"nested deeper than {MAX_DEPTH} levels", "a flat policy")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                line = _line(event)
                raise Unreadable(line, "a second document begins here", "one document per file")


def _check_nodes(root: Node) -> None:
    """Tags, and the size once aliases are followed (billion laughs, alias to itself)."""
    count = 0
    stack: list[tuple[Node, int]] = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH * 2:
            raise Unreadable(
                line_of(node), "aliases expand to too much", f"at most {MAX_NODES:,} values"
            )
        if node.tag not in _ALLOWED:
            raise Unreadable(
                line_of(node),
                f"the tag {node.tag.removeprefix(_CORE)!r} is not allowed",
                "plain values without !tags",
            )
        stack.extend((child, depth + 1) for child in _children(node))


def _children(node: Node) -> Iterator[Node]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, SequenceNode):
        yield from node.value


def pairs(node: MappingNode) -> Iterator[tuple[Node, Node]]:
    """Keys and values of a mapping; ``<<`` merges come first, so that own keys win."""
    merged: list[tuple[Node, Node]] = []
    own: list[tuple[Node, Node]] = []
    for key, value in node.value:
        if key.tag != _CORE + "merge":
            own.append((key, value))
        elif isinstance(value, MappingNode):
            merged.extend(pairs(value))
        elif isinstance(value, SequenceNode):
            for part in value.value:
                if isinstance(part, MappingNode):
                    merged.extend(pairs(part))
    names = {key.value for key, _ in own if isinstance(key, ScalarNode)}
    seen: set[str] = set()
    for key, value in merged:
        if isinstance(key, ScalarNode) and key.value not in names and key.value not in seen:
            seen.add(key.value)
            yield key, value
    yield from own


def scalar(node: ScalarNode) -> str | int | float | bool | None:
    """The plain value of a scalar: text, whole or decimal number, flag, or nothing."""
    kind = node.tag.removeprefix(_CORE)
    text = str(node.value)
    if kind == "int":
        try:
            return int(text.replace("_", ""), 0) if ":" not in text else text
        except ValueError:
            return text  # 0777 and the like: an octal of YAML 1.1, which nobody means
    if kind == "float":
        try:
            return float(text.replace("_", ""))
        except ValueError:
            return text  # .inf, .nan and sexagesimals stay text and are refused as numbers
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind == "null":
        return None
    return text
