r"""Templates: ``{{ name }}`` and nothing else, compiled once to bytes with holes in them.

No logic, no attributes, no filters: a template can neither loop nor look around. Text outside the
slots is quoted-printable at compile time; a soft line break before and after every slot lets a value
of any length be written there without touching its neighbours. In HTML values are escaped. Merging
one recipient is a join of a few bytes objects.
"""

from __future__ import annotations

import html as html_module
import re
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256

import msgspec

from mailweir.mail import headers
from mailweir.mail.mime_build import (
    Attachment,
    InvalidContent,
    Part,
    Segment,
    Slot,
    assemble,
    quoted_printable,
    text_head,
    unix_lines,
    utf8,
    whole,
)

MAX_VALUE = 65536  # characters of one variable
MAX_SUBJECT_VALUE = 500  # characters of one variable in the subject
_SLOT = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_.-]{0,63})\s*\}\}")
_PLAIN = re.compile(r"[ -<>-~]{0,70}\Z")
_BREAK = re.compile(r"\r\n|\r|\n")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
Value = str | int | float | bool | None


class TemplateError(InvalidContent):
    """The template or a variable is not usable; ``field`` names which."""


class Skeleton(msgspec.Struct, frozen=True, array_like=True):
    """A compiled template. ``literals`` has one element more than ``slots``; so has ``subject``."""

    subject: tuple[str, ...]
    subject_slots: tuple[str, ...]
    literals: tuple[bytes, ...]
    slots: tuple[tuple[str, bool], ...]  # name, whether it stands in HTML

    @property
    def names(self) -> frozenset[str]:
        """Every variable the template asks for."""
        return frozenset(self.subject_slots) | {name for name, _ in self.slots}

    def encode(self) -> bytes:
        """The form kept in the spool (``ContentKind.SKELETON``)."""
        return msgspec.msgpack.encode(self)

    def check(self, variables: Mapping[str, Value], field: str = "variables") -> dict[str, Value]:
        """The variables this template uses, checked. Raises :class:`TemplateError` naming one."""
        kept: dict[str, Value] = {}
        for name in sorted(self.names):
            value = variables.get(name)
            if value is None:
                raise TemplateError(
                    f"{field}.{name}", "the template asks for it and it is not given"
                )
            if isinstance(value, str):
                limit = MAX_SUBJECT_VALUE if name in self.subject_slots else MAX_VALUE
                if len(value) > limit:
                    raise TemplateError(f"{field}.{name}", f"longer than {limit} characters")
                bad = _CONTROL.search(value)
                if bad:
                    raise TemplateError(
                        f"{field}.{name}", f"character U+{ord(bad[0]):04X} is not allowed"
                    )
                if name in self.subject_slots and _BREAK.search(value):
                    raise TemplateError(f"{field}.{name}", "a line break cannot stand in a subject")
            kept[name] = value
        return kept

    def merge(self, variables: Mapping[str, Value]) -> bytes:
        """The message of one recipient: Subject, MIME headers and body, CRLF. Variables have passed
        :meth:`check`; a missing one raises :class:`TemplateError`."""
        try:
            subject = self.subject[0]
            for name, words in zip(self.subject_slots, self.subject[1:], strict=True):
                subject += _text(variables[name]) + words
            out = [headers.unstructured("Subject", subject), self.literals[0]]
            for (name, in_html), literal in zip(self.slots, self.literals[1:], strict=True):
                value = _text(variables[name])
                if in_html:
                    value = html_module.escape(value)
                out.append(value.encode("ascii") if _PLAIN.match(value) else _quote(value))
                out.append(literal)
        except KeyError as missing:
            raise TemplateError(f"variables.{missing.args[0]}", "is not given") from None
        return b"".join(out)


def decode(body: bytes) -> Skeleton:
    """The skeleton in a stored content."""
    return _DECODER.decode(body)


_DECODER = msgspec.msgpack.Decoder(Skeleton)


def compile_template(
    subject: str,
    text: str | None = None,
    html: str | None = None,
    attachments: Sequence[Attachment] = (),
    allowed: Collection[str] | None = None,
) -> Skeleton:
    """Compile a template; ``allowed`` names limit what it may ask for. Raises :class:`TemplateError`
    for anything between ``{{`` and ``}}`` that is no name, :class:`InvalidContent` for a bad part."""
    headers.check_value("Subject", subject, 998)
    subject_literals, subject_slots = _cut("subject", subject)
    seed = sha256(repr((subject, text, html)).encode("utf-8", "surrogatepass")).digest()
    root = assemble(
        None if text is None else _part("text", "plain", text),
        None if html is None else _part("html", "html", html),
        attachments,
        seed,
    )
    literals, slots = _gather(whole(root))
    made = Skeleton(tuple(subject_literals), tuple(subject_slots), literals, slots)
    unknown = made.names - set(allowed) if allowed is not None else frozenset()
    if unknown:
        raise TemplateError("template", f"nothing provides {', '.join(sorted(unknown))}")
    return made


def _cut(field: str, source: str) -> tuple[list[str], list[str]]:
    """Literal texts and the names between them."""
    pieces = _SLOT.split(source)
    literals, names = pieces[::2], pieces[1::2]
    for i, literal in enumerate(literals):
        odd = re.search(r"\{\{|\}\}", literal)
        at = odd.start() if odd else -1
        if i > 0 and literal.startswith("}"):
            at = 0
        elif i < len(names) and literal.endswith("{"):
            at = len(literal) - 1
        if at >= 0:
            number = ("".join(pieces[: 2 * i]) + literal[:at]).count("\n") + 1
            raise TemplateError(field, f"line {number}: only {{{{ name }}}} is understood")
    return literals, names


def _part(field: str, subtype: str, source: str) -> Part:
    source = unix_lines(source)
    if not source.endswith("\n"):
        source += "\n"
    literals, names = _cut(field, source)
    kind = "html" if subtype == "html" else "text"
    body: list[Segment] = []
    for i, literal in enumerate(literals):
        encoded = quoted_printable(utf8(field, literal))
        if i < len(names):
            encoded += b"=\r\n"
        if i > 0:
            encoded = b"=\r\n" + encoded
        body.append(encoded)
        if i < len(names):
            body.append(Slot(names[i], kind))
    return Part(text_head(subtype, "quoted-printable"), body)


def _gather(segments: Sequence[Segment]) -> tuple[tuple[bytes, ...], tuple[tuple[str, bool], ...]]:
    literals: list[bytes] = [b""]
    slots: list[tuple[str, bool]] = []
    for segment in segments:
        if isinstance(segment, Slot):
            slots.append((segment.name, segment.kind == "html"))
            literals.append(b"")
        else:
            literals[-1] += segment
    return tuple(literals), tuple(slots)


def _text(value: Value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _quote(value: str) -> bytes:
    """A value that needs encoding or is long; it starts and ends between soft line breaks."""
    return quoted_printable(unix_lines(value).encode("utf-8"))
