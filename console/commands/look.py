"""``mailweir status``, ``queues``, ``trace``, ``cancel``: what is going on, and take something back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from console.output import Exit, Format, OutputOption, emit, fail, print_rows

if TYPE_CHECKING:
    from console.reading import Reader


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("status")(status)
    app.command("queues")(queues)
    app.command("trace")(trace)
    app.command("cancel")(cancel)


def status(output: OutputOption = Format.TABLE) -> None:
    """Health of the parts, jobs by state, workers."""
    with _reader() as reader:
        emit(reader.status(), output, _status_table)


def queues(output: OutputOption = Format.TABLE) -> None:
    """Queue depth, window, rate, and what waits per bucket with its estimated delivery time."""
    import msgspec

    with _reader() as reader:
        emit(msgspec.to_builtins(reader.queues()), output, _queues_table)


def trace(
    job: Annotated[str, typer.Argument(help="Id of a job or of a message.")],
    output: OutputOption = Format.TABLE,
) -> None:
    """One job from accept to its end: decisions, waits with reasons, attempts, SMTP steps, reports."""
    from mailweir.contracts.ids import InvalidId, parse_id

    try:
        number = parse_id(job)
    except InvalidId as error:
        fail(f"{job!r} is not an id: {error}", Exit.USAGE)
    with _reader() as reader:
        one = reader.spool.job(number)
        found = [one] if one is not None else reader.spool.jobs_of(number)
        if not found:
            fail(f"no job or message {job}", Exit.NOT_FOUND)
        traces = [reader.trace(entry) for entry in found]
        emit(traces[0] if one is not None else traces, output, _trace_table)


def cancel(
    job: Annotated[str | None, typer.Option(help="Id of a job.")] = None,
    message: Annotated[str | None, typer.Option(help="Id of a message: all its jobs.")] = None,
    campaign: Annotated[str | None, typer.Option(help="All jobs of a campaign.")] = None,
    tenant: Annotated[str | None, typer.Option(help="All jobs of a tenant.")] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Take back what no worker has taken yet."""
    from mailweir.contracts.ids import InvalidId, parse_id

    if not any((job, message, campaign, tenant)):
        fail("say what to cancel: --job, --message, --campaign or --tenant", Exit.USAGE)
    try:
        job_id = parse_id(job) if job else None
        message_id = parse_id(message) if message else None
    except InvalidId as error:
        fail(f"not an id: {error}", Exit.USAGE)
    with _reader() as reader:
        count = reader.spool.cancel(
            reader.now(), job=job_id, message=message_id, campaign=campaign, tenant=tenant
        )
        emit(
            {"cancelled": count},
            output,
            lambda data: print_rows(("cancelled",), [(data["cancelled"],)]),
        )
    if not count:
        raise typer.Exit(int(Exit.NOT_FOUND))


@contextmanager
def _reader() -> Iterator[Reader]:
    from console.opening import clock_of, opened
    from console.reading import Reader

    with opened() as (settings, database):
        reader = Reader(settings, clock_of(settings), database)
        try:
            yield reader
        finally:
            reader.close()


def _status_table(data: dict[str, Any]) -> None:
    print_rows(("part", "state"), [(part, data[part]) for part in ("spool", "redis", "broker")])
    print_rows(
        ("worker", "queues", "seconds ago"),
        [
            (row["name"], ", ".join(row.get("queues", ())), row["age_seconds"])
            for row in data["workers"]
        ]
        or [("none", "-", "-")],
    )
    if data["cut_off"]:
        print_rows(
            ("queue", "source no live worker of it reaches"),
            [(row["queue"], row["source"]) for row in data["cut_off"]],
        )
    print_rows(
        ("bucket", "jobs by state"),
        [
            (
                row["bucket"],
                ", ".join(f"{count} {state}" for state, count in sorted(row["states"].items()))
                or "none",
            )
            for row in data["buckets"]
        ],
    )


def _queues_table(data: dict[str, Any]) -> None:
    print_rows(
        ("queue", "chunks", "window", "jobs/s"),
        [
            (
                row["queue"],
                "?" if row["chunks"] is None else row["chunks"],
                row["window"],
                row["per_second"],
            )
            for row in data["queues"]
        ],
    )
    print_rows(
        ("bucket", "due", "later", "oldest s", "delivered in about s"),
        [
            (
                row["bucket"],
                row["due"],
                row["later"],
                row["oldest_seconds"],
                "unknown" if row["delivery_seconds"] is None else row["delivery_seconds"],
            )
            for row in data["buckets"]
        ],
    )


def _trace_table(data: Any) -> None:
    for one in data if isinstance(data, list) else [data]:
        reason = f" ({one['reason']})" if one["reason"] else ""
        print_rows(
            ("time", "what", ""),
            [(_time(e["at"]), e["what"], e["text"]) for e in one["timeline"]],
            title=f"{one['id']} to {one['recipient']}: {one['state']}{reason}",
        )
        for entry in one["timeline"]:
            talk = entry.get("conversation")
            if talk:
                print_rows(
                    ("ms", "", f"with {talk['host']}{', TLS' if talk['tls'] else ''}"),
                    talk["steps"],
                )


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
