"""``mailweir suppress``: addresses not to be mailed."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from console.output import Exit, Format, OutputOption, emit, fail, print_rows

if TYPE_CHECKING:
    from mailweir.plumbing.database import Database
    from suppression.entries import Entry
    from suppression.projection import Projection

_TOLD = 50_000
"""Rows between two lines of progress where stderr is no terminal."""

ScopeOption = Annotated[str | None, typer.Option(help="global, tenant or bucket.")]
TenantOption = Annotated[str | None, typer.Option(help="Tenant the entry holds for.")]
BucketOption = Annotated[str | None, typer.Option(help="transactional, marketing or bulk.")]
WhyOption = Annotated[str, typer.Option("--why", help="Why, for the audit.")]
AuthorOption = Annotated[str | None, typer.Option(help="Who changes it; default: you.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="Addresses not to be mailed.", no_args_is_help=True)
    group.command("add")(add)
    group.command("remove")(remove)
    group.command("check")(check)
    group.command("list")(listing)
    group.command("import")(import_)
    group.command("export")(export)
    group.command("pending")(pending)
    app.add_typer(group, name="suppress")


def add(
    addresses: Annotated[
        list[str], typer.Argument(help="Addresses, @domains or sender>recipient pairs.")
    ],
    scope: ScopeOption = None,
    tenant: TenantOption = None,
    bucket: BucketOption = None,
    reason: Annotated[str, typer.Option(help="Reason kept with the entry.")] = "manual",
    days: Annotated[
        float | None, typer.Option(help="Ends after so many days; default: never.")
    ] = None,
    why: WhyOption = "",
    author: AuthorOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Suppress addresses from now on."""
    from suppression.entries import BadEntry, Entry, key_of
    from suppression.transfer import add_by_hand

    chosen = scope or ("bucket" if bucket else "tenant" if tenant else "global")
    with _desk() as (projection, _, now):
        try:
            entries = [
                Entry(
                    key=key_of(address),
                    scope=chosen,
                    reason=reason,
                    created_at=now,
                    tenant=tenant or "",
                    bucket=bucket or "",
                    expires_at=None if days is None else now + days * 86400.0,
                    source_event="manual",
                )
                for address in addresses
            ]
            changed = add_by_hand(projection, entries, author=_author(author), why=why, now=now)
        except BadEntry as error:
            fail(f"nothing was added: {error}", Exit.USAGE)
    emit({"changed": changed}, output, _count("changed"))


def remove(
    addresses: Annotated[list[str], typer.Argument(help="Addresses, @domains or pairs.")],
    scope: ScopeOption = None,
    tenant: TenantOption = None,
    bucket: BucketOption = None,
    why: WhyOption = "",
    author: AuthorOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Mail these addresses again; all their entries, or those of a scope, tenant or bucket."""
    from suppression.entries import BadEntry
    from suppression.transfer import remove_by_hand

    with _desk() as (projection, _, now):
        try:
            removed = remove_by_hand(
                projection,
                addresses,
                scope=scope,
                tenant=tenant,
                bucket=bucket,
                author=_author(author),
                why=why,
                now=now,
            )
        except BadEntry as error:
            fail(f"nothing was removed: {error}", Exit.USAGE)
    emit({"removed": removed}, output, _count("removed"))
    if not removed:
        raise typer.Exit(int(Exit.NOT_FOUND))


def check(
    address: Annotated[str, typer.Argument(help="Address to ask about.")],
    tenant: Annotated[str, typer.Option(help="Tenant that would mail it.")] = "default",
    bucket: Annotated[str, typer.Option(help="Bucket it would be mailed in.")] = "marketing",
    sender: Annotated[str, typer.Option(help="Envelope sender, for pair entries.")] = "",
    output: OutputOption = Format.TABLE,
) -> None:
    """May this address be mailed, and if not, why. Exit code 4 when it may not."""
    import msgspec

    from suppression import store
    from suppression.entries import BadEntry, key_of, verdict

    with _desk() as (_, database, now):
        try:
            key = key_of(address)
            keys = [key, "@" + key.rpartition("@")[2]]
            if sender:
                keys.append(key_of(f"{sender}>{address}"))
        except BadEntry as error:
            fail(str(error), Exit.USAGE)
        with database.read() as conn:
            found = [entry for entries in store.lookup(conn, keys).values() for entry in entries]
    held = [store.as_held(entry) for entry in found if not entry.pending]
    reason = verdict(held, tenant, bucket, now)
    answer = {
        "suppressed": reason is not None,
        "reason": reason,
        "entries": msgspec.to_builtins(found),
    }

    def table(data: dict[str, Any]) -> None:
        print_rows(("suppressed", "reason"), [(data["suppressed"], data["reason"] or "")])
        _entries(found)

    emit(answer, output, table)
    if reason is not None:
        raise typer.Exit(int(Exit.REFUSED))


def listing(
    scope: ScopeOption = None,
    tenant: TenantOption = None,
    reason: Annotated[str | None, typer.Option(help="Only this reason.")] = None,
    pending: Annotated[bool | None, typer.Option(help="Only (not) pending ones.")] = None,
    after: Annotated[str, typer.Option(help="Last address of the page before.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Entries at most.")] = 100,
    output: OutputOption = Format.TABLE,
) -> None:
    """A page of the list, by address."""
    import msgspec

    from suppression import store

    with _desk() as (_, database, _now), database.read() as conn:
        found = store.listing(
            conn,
            scope=scope,
            tenant=tenant,
            reason=reason,
            pending=pending,
            after=after,
            limit=limit,
        )
    emit(msgspec.to_builtins(found), output, lambda _: _entries(found))


def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV with a header.")],
    scope: ScopeOption = None,
    tenant: TenantOption = None,
    bucket: BucketOption = None,
    reason: Annotated[str, typer.Option(help="Reason where a row has none.")] = "imported",
    why: WhyOption = "",
    author: AuthorOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Add the addresses of a CSV file; bad rows are named by line and skipped. Exit code 1 if any."""
    import msgspec

    from suppression.entries import BadEntry
    from suppression.transfer import default_entry, import_csv

    chosen = scope or ("bucket" if bucket else "tenant" if tenant else "global")
    with _desk() as (projection, _, now), file.open(encoding="utf-8-sig", newline="") as lines:
        defaults = msgspec.structs.replace(
            default_entry(now),
            scope=chosen,
            tenant=tenant or "",
            bucket=bucket or "",
            reason=reason,
        )
        try:
            with _progress("importing", lines) as progress:
                done = import_csv(
                    projection,
                    lines,
                    author=_author(author),
                    why=why,
                    now=now,
                    defaults=defaults,
                    progress=progress,
                )
        except (BadEntry, UnicodeDecodeError) as error:
            fail(f"{file}: {error}", Exit.USAGE)
    for row in done.bad_rows:
        sys.stderr.write(f"{file}:{row.line}: {row.why}\n")
    answer = {"rows": done.rows, "changed": done.changed, "bad": done.bad}
    emit(answer, output, lambda data: print_rows(tuple(data), [tuple(data.values())]))
    if done.bad:
        raise typer.Exit(int(Exit.FAILURE))


def export(
    file: Annotated[
        Path | None, typer.Argument(help="File to write; default: standard output.")
    ] = None,
) -> None:
    """Write the whole list as CSV."""
    from suppression.transfer import export_csv

    with _desk() as (_, database, _now):
        if file is None and sys.stdout.isatty():
            export_csv(
                database, sys.stdout, lambda rows: None
            )  # the rows are on the screen themselves
            return
        if file is None:
            with _progress("exporting") as progress:
                export_csv(database, sys.stdout, progress)
            return
        with (
            file.open("w", encoding="utf-8", newline="") as out,
            _progress("exporting") as progress,
        ):
            export_csv(database, out, progress)


def pending(
    decision: Annotated[str, typer.Argument(help="confirm: suppress them; forget: drop them.")],
    why: WhyOption = "",
    author: AuthorOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Decide about suppressions the mass-bounce guard holds back."""
    from suppression.transfer import decide_pending

    if decision not in ("confirm", "forget"):
        fail("say confirm or forget", Exit.USAGE)
    with _desk() as (projection, _, now):
        count = decide_pending(
            projection, confirm=decision == "confirm", author=_author(author), why=why, now=now
        )
    emit({"addresses": count}, output, _count("addresses"))


def _author(given: str | None) -> str:
    return given or getpass.getuser()


def _count(name: str) -> Any:
    return lambda data: print_rows((name,), [(data[name],)])


def _entries(found: list[Entry]) -> None:
    print_rows(
        ("address", "scope", "tenant", "bucket", "reason", "ends", "pending"),
        [
            (e.key, e.scope, e.tenant, e.bucket, e.reason, _day(e.expires_at), e.pending or "")
            for e in found
        ],
    )


def _day(at: float | None) -> str:
    from datetime import UTC, datetime

    return "never" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


@contextmanager
def _desk() -> Iterator[tuple[Projection, Database, float]]:
    from console.opening import clock_of, opened
    from mailweir.plumbing.install import master_key
    from mailweir.plumbing.redis import connect
    from suppression.projection import Projection

    with opened() as (settings, database):
        client = connect(settings)
        try:
            now = clock_of(settings).now()
            yield Projection(client, database, master_key(settings)), database, now
        finally:
            client.close()


@contextmanager
def _progress(what: str, lines: TextIO | None = None) -> Iterator[Callable[[int], None]]:
    """Tell rows done on stderr: a bar on a terminal, elsewhere a line each :data:`_TOLD` rows. ``lines``: the
    file being read, for the share that is done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    size = os.fstat(lines.fileno()).st_size if lines is not None else 0

    def share() -> int:
        return lines.buffer.tell() if lines is not None else 0

    if not sys.stderr.isatty():
        told = 0

        def tell(rows: int) -> None:
            nonlocal told
            if rows // _TOLD > told:
                told = rows // _TOLD
                part = f" ({share() / size:.0%})" if size else ""
                sys.stderr.write(f"{what} {rows:,} rows{part}\n")

        yield tell
        return
    columns = (
        TextColumn("{task.description} {task.fields[rows]:,} rows"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=size or None, rows=0)
        yield lambda rows: bar.update(task, completed=share() if size else rows, rows=rows)
