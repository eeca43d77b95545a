"""``mailweir keys``: make, list and revoke API keys."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.output import Exit, Format, OutputOption, emit, fail, print_rows

if TYPE_CHECKING:
    from mailweir.plumbing.clock import Clock
    from mailweir.plumbing.database import Database

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Data directory; default: MAILWEIR_DATA or ./data.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    keys = typer.Typer(help="API keys of the submission API.", no_args_is_help=True)
    keys.command()(create)
    keys.command("list")(list_)
    keys.command()(revoke)
    app.add_typer(keys, name="keys")


def _open(data: Path | None) -> tuple[Database, Clock]:
    from mailweir.plumbing.clock import Clock
    from mailweir.plumbing.database import DatabaseUnavailable, migrate, open_database
    from mailweir.plumbing.settings import SettingsError, load

    try:
        settings = load(data)
        database = open_database(settings)
        migrate(database)
    except SettingsError as error:
        fail(str(error), Exit.USAGE)
    except DatabaseUnavailable as error:
        fail(f"the spool cannot be reached: {error}", Exit.TEMPFAIL)
    return database, Clock(settings.clock.origin, settings.clock.rate)


def create(
    tenant: Annotated[str, typer.Argument(help="Whose key it is.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="send, read, route, webhook, admin; repeatable. Default: send, read."),
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(help="Sender domain it may use, '*.acme.test' for subdomains; default: all."),
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Days until it expires.")] = None,
    output: OutputOption = Format.TABLE,
    data: DataOption = None,
) -> None:
    """Make a key. It is shown once and cannot be shown again."""
    from mailweir.plumbing import apikeys

    database, clock = _open(data)
    now = clock.now()
    try:
        token = apikeys.create(
            database,
            tenant=tenant,
            scopes=scope or ("send", "read"),
            domains=domain or ("*",),
            now=now,
            expires_at=None if days is None else now + days * 86400,
        )
    except ValueError as error:
        fail(str(error), Exit.USAGE)
    finally:
        database.close()
    emit({"key": token, "tenant": tenant}, output, lambda _: typer.echo(token))


def list_(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    output: OutputOption = Format.TABLE,
    data: DataOption = None,
) -> None:
    """Keys with their scopes; never their secrets."""
    from mailweir.plumbing import apikeys

    database, clock = _open(data)
    now = clock.now()
    try:
        rows = apikeys.listing(database, tenant)
    finally:
        database.close()

    def state(row: apikeys.KeyRow) -> str:
        if row.revoked_at is not None:
            return "revoked"
        return "expired" if row.expires_at is not None and row.expires_at <= now else "active"

    def table(_: object) -> None:
        print_rows(
            ("key", "tenant", "state", "scopes", "domains", "created"),
            [
                (
                    r.id,
                    r.tenant,
                    state(r),
                    " ".join(r.scopes),
                    " ".join(r.domains),
                    _day(r.created_at),
                )
                for r in rows
            ],
        )

    emit([row._asdict() | {"state": state(row)} for row in rows], output, table)


def revoke(
    key: Annotated[str, typer.Argument(help="The key's id (mailweir keys list).")],
    data: DataOption = None,
) -> None:
    """Revoke a key; doors refuse it within 5 seconds."""
    from mailweir.plumbing import apikeys

    database, clock = _open(data)
    try:
        done = apikeys.revoke(database, key, clock.now())
    finally:
        database.close()
    if not done:
        fail("there is no active key with this id; see: mailweir keys list", Exit.NOT_FOUND)
    typer.echo("revoked")


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
