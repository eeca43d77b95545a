"""``mailweir classify``: what replies mean, one line in, one line out; needs no stack and no settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer

from console.output import Format, print_rows

MAX_LINE = 1 << 20  # bytes of a line that are looked at


class _Line(msgspec.Struct):
    reply: str | list[str]  # a list: the lines of one reply
    provider: Any = None
    stage: Any = None


def classify_line(line: bytes) -> dict[str, Any]:
    """One line of input, plain or JSON, as the object printed for it; never raises for a line."""
    from mailweir.mail.classify import classify

    text = line.decode("utf-8", "replace").strip().lstrip("\ufeff")
    item = _Line(text)
    if text.startswith("{"):
        try:
            item = msgspec.json.decode(text, type=_Line)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            blank = msgspec.to_builtins(classify(""))
            return {**blank, "error": f"not a JSON object with reply, provider, stage: {error}"}
    answer: dict[str, Any] = msgspec.to_builtins(
        classify(
            item.reply if isinstance(item.reply, str) else "\n".join(item.reply),
            provider=item.provider if isinstance(item.provider, str) else None,
            stage=item.stage if isinstance(item.stage, str) else None,
        )
    )
    return answer


def lines() -> Iterator[bytes]:
    """Lines of standard input as they come; an overlong one is cut, its rest skipped."""
    stream = sys.stdin.buffer
    while chunk := stream.readline(MAX_LINE):
        line = chunk
        while not chunk.endswith(b"\n") and (chunk := stream.readline(MAX_LINE)):
            pass
        yield line


def classify_command(
    replies: Annotated[
        list[str] | None, typer.Argument(help="Replies; without any they are read from stdin.")
    ] = None,
    output: Annotated[
        Format, typer.Option("-o", "--output", help="table, yaml, or json: one object per line.")
    ] = Format.TABLE,
) -> None:
    """Classify SMTP replies: one per line of standard input, or JSON lines with reply, provider, stage."""
    source: Iterator[bytes] = (r.encode() for r in replies) if replies else lines()
    answers = (classify_line(line) for line in source)
    if output in (Format.JSON, Format.NDJSON):
        for answer in answers:
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()  # a caller may ask line by line
        return
    if output is Format.YAML:
        import yaml

        for answer in answers:
            sys.stdout.write(yaml.safe_dump([answer], sort_keys=False, allow_unicode=True))
        return
    columns = (
        "category",
        "class",
        "blame",
        "retry",
        "suppress",
        "retry_after",
        "confidence",
        "rule",
    )
    print_rows(columns, [[answer[c] for c in columns] for answer in answers])


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("classify")(classify_command)
