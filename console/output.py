"""How commands answer: ``-o table|json|yaml`` for every reading command, and the exit codes.

Exit codes (documented in docs/cli.md): 0 ok, 1 failure, 2 usage, 3 not found, 4 refused or unsafe,
75 temporary failure (try again), as sendmail's EX_TEMPFAIL.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum, StrEnum
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer

T = TypeVar("T")


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    TEMPFAIL = 75


class Format(StrEnum):
    """Output formats."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NDJSON = "ndjson"


OutputOption = Annotated[
    Format, typer.Option("-o", "--output", help="How to print: table, json, yaml or ndjson.")
]


def emit(data: Any, output: Format, table: Callable[[Any], None] | None = None) -> None:
    """Print ``data`` in the chosen format; ``table`` prints the human form."""
    if output is Format.TABLE and table is not None:
        table(data)
        return
    if output is Format.NDJSON and isinstance(data, Sequence) and not isinstance(data, str):
        for item in data:
            sys.stdout.write(msgspec.json.encode(item).decode() + "\n")
        return
    if output is Format.YAML:
        import yaml

        sys.stdout.write(
            yaml.safe_dump(msgspec.to_builtins(data), sort_keys=False, allow_unicode=True)
        )
        return
    text = msgspec.json.format(msgspec.json.encode(data), indent=2).decode()
    sys.stdout.write(text + "\n")


_CONTROLS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")


def print_rows(
    headers: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = ""
) -> None:
    """A plain table on standard output. Cells hold what others wrote: no word of theirs is markup, and none
    reaches the terminal as a command."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if title:
        sys.stdout.write(f"{title}\n")  # above a narrow table it would be wrapped to its width
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*[Text(str(cell).translate(_CONTROLS)) for cell in row])
    Console(soft_wrap=False).print(table)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """The same items, with a progress bar on standard error while a person looks at it."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track as bar

    return bar(items, what, total=total, console=Console(stderr=True), transient=True)


def fail(message: str, code: Exit = Exit.FAILURE) -> NoReturn:
    """Say what went wrong and what to do next on standard error, and leave."""
    sys.stderr.write(message.rstrip() + "\n")
    raise typer.Exit(int(code))
