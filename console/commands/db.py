"""``mailweir db``: bring the database's tables to this release, and say where they are."""

from __future__ import annotations

import typer

from console.output import Exit, Format, OutputOption, emit, fail, print_rows


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="The database's tables (Alembic revisions).", no_args_is_help=True)
    group.command("migrate")(migrate)
    group.command("current")(current)
    app.add_typer(group, name="db")


def migrate() -> None:
    """Bring the tables up to date; safe when several processes start it together."""
    from mailweir.plumbing.database import DatabaseUnavailable, open_database
    from mailweir.plumbing.database import migrate as run
    from mailweir.plumbing.settings import SettingsError, load

    try:
        database = open_database(load())
        try:
            run(database)
        finally:
            database.close()
    except SettingsError as error:
        fail(str(error), Exit.USAGE)
    except DatabaseUnavailable as error:
        fail(f"the database does not answer: {error}", Exit.TEMPFAIL)


def current(output: OutputOption = Format.TABLE) -> None:
    """The revision the database is at, and this release's. Exit 4 when they differ."""
    from console.opening import opened
    from mailweir.plumbing.database import schema_revision
    from mailweir.spool.migrations import HEAD

    with opened() as (_, database):
        found = schema_revision(database)
    emit(
        {"database": found, "release": HEAD},
        output,
        lambda data: print_rows(("database", "release"), [(data["database"], data["release"])]),
    )
    if found != HEAD:
        fail("run: mailweir db migrate", Exit.REFUSED)
