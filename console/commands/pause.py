"""``mailweir pause``, ``resume``, ``pauses``: stop a bucket, pool, source, provider or tenant for a while."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from console.output import Exit, Format, OutputOption, emit, fail, print_rows


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("pause")(pause)
    app.command("resume")(resume)
    app.command("pauses")(pauses)


def pause(
    subject: Annotated[
        str, typer.Argument(help="bucket:NAME, pool:NAME, source:NAME, provider:NAME, tenant:NAME.")
    ],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="For how long.")] = 60.0,
    author: Annotated[str | None, typer.Option(help="Who; default: the login name.")] = None,
) -> None:
    """Hold what would go this way; nothing is lost, no attempt is spent. In force within 2 s."""
    from console.opening import clock_of, opened
    from console.operate import BadSubject, Operator

    with opened() as (settings, database):
        operator = Operator(database, clock_of(settings))
        try:
            operator.pause(subject, minutes * 60, author or getpass.getuser(), reason)
        except BadSubject as error:
            fail(str(error), Exit.USAGE)


def resume(
    subject: Annotated[str, typer.Argument(help="What was paused.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit.")] = "",
    author: Annotated[str | None, typer.Option(help="Who; default: the login name.")] = None,
) -> None:
    """End a pause. Exit 3 when there was none."""
    from console.opening import clock_of, opened
    from console.operate import BadSubject, Operator

    with opened() as (settings, database):
        operator = Operator(database, clock_of(settings))
        try:
            found = operator.resume(subject, author or getpass.getuser(), reason)
        except BadSubject as error:
            fail(str(error), Exit.USAGE)
    if not found:
        fail(f"{subject} was not paused", Exit.NOT_FOUND)


def pauses(output: OutputOption = Format.TABLE) -> None:
    """What is paused, until when, by whom and why."""
    from console.opening import clock_of, opened
    from console.operate import Operator

    with opened() as (settings, database):
        rows = Operator(database, clock_of(settings)).overrides()

    def table(data: list[dict[str, Any]]) -> None:
        print_rows(
            ("subject", "until", "author", "reason"),
            [(row["subject"], _end(row["until"]), row["author"], row["reason"]) for row in data],
        )

    emit(rows, output, table)


def _end(at: float | None) -> str:
    return "-" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
