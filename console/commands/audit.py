"""``mailweir audit``: the journal is what it was; export it; erase a recipient."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from console.output import Exit, Format, OutputOption, emit, fail, print_rows


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="The tamper-evident journal of decisions and attempts.", no_args_is_help=True
    )
    group.command("verify")(verify)
    group.command("export")(export)
    group.command("erase")(erase)
    app.add_typer(group, name="audit")


def verify(output: OutputOption = Format.TABLE) -> None:
    """Recompute the chain and every record. Exit 4 when something was altered or removed."""
    import time

    import msgspec

    from console.opening import clock_of, opened
    from journal.audit import verify as run

    with opened() as (settings, database):
        keep = clock_of(settings).real(settings.spool.keep_jobs)
        report = run(database, real=time.time(), keep_jobs=keep)
    emit(
        {**msgspec.to_builtins(report), "ok": report.ok},
        output,
        lambda data: print_rows(("", ""), [(k, v) for k, v in data.items()]),
    )
    if report.unsealed:
        sys.stderr.write(
            f"{report.unsealed} records are in no segment yet and not protected: does the reputation "
            "process run?\n"
        )
    if not report.ok:
        fail("the journal was altered; see broken, altered and missing above", Exit.REFUSED)


def export() -> None:
    """Write every segment to standard output, one JSON object a line."""
    import msgspec

    from console.opening import opened
    from journal.audit import export as run

    with opened() as (_, database):
        for segment in run(database):
            sys.stdout.write(msgspec.json.encode(segment).decode() + "\n")


def erase(
    recipient: Annotated[str, typer.Argument(help="Address to erase from jobs and feedback.")],
    output: OutputOption = Format.TABLE,
) -> None:
    """Erase a recipient (GDPR art. 17); the chain stays valid, the suppression entry stays."""
    from console.opening import opened
    from journal.audit import StillLive
    from journal.audit import erase as run
    from mailweir.mail.address import InvalidAddress, canonical

    try:
        key = canonical(recipient)
    except InvalidAddress as error:
        fail(f"not an address: {error}", Exit.USAGE)
    with opened() as (_, database):
        try:
            count = run(database, key)
        except StillLive as error:
            fail(str(error), Exit.REFUSED)
    emit({"erased_jobs": count}, output, lambda data: print_rows(("erased jobs",), [(count,)]))
