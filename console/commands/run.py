"""``mailweir run PROCESS``: one process of Mailweir in the foreground, for ``up`` and for fleets."""

from __future__ import annotations

from typing import Annotated

import typer

from console.output import Exit, fail
from mailweir.contracts.job import Bucket


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Run one process in the foreground (fleets, containers).", no_args_is_help=True
    )
    group.command("state")(state)
    group.command("web")(web)
    group.command("smtp")(smtp)
    group.command("ingress")(ingress)
    group.command("router")(router)
    group.command("worker")(worker)
    group.command("reputation")(reputation)
    app.add_typer(group, name="run")


def state() -> None:
    """The private Valkey/Redis server of the data directory; this process becomes it."""
    from console.entry import run_state

    run_state()


def web() -> None:
    """API, feedback webhooks, unsubscribe, console."""
    from console.entry import run_web

    run_web()


def smtp() -> None:
    """The SMTP door: submission with AUTH (an API key as password) and STARTTLS."""
    from console.entry import run_smtp
    from producer.doors.smtp import UnsafeListener

    try:
        run_smtp()
    except UnsafeListener as error:
        fail(str(error), Exit.USAGE)


def ingress() -> None:
    """Accepts what services published to the ingress queue."""
    from console.entry import run_ingress

    run_ingress()


def router(
    buckets: Annotated[
        str, typer.Option(help="Buckets this loop serves, comma-separated.")
    ] = "transactional,marketing,bulk",
) -> None:
    """Decides routes and fills the bucket queues; frees what was lost."""
    from console.entry import run_router

    names = [name.strip() for name in buckets.split(",") if name.strip()]
    unknown = [name for name in names if name not in set(Bucket)]
    if unknown or not names:
        fail(
            f"no bucket {', '.join(unknown) or '(empty)'}; there are: {', '.join(Bucket)}",
            Exit.USAGE,
        )
    run_router(tuple(Bucket(name) for name in names))


def worker(
    queues: Annotated[
        str, typer.Option(help="Bucket queues this worker serves, comma-separated.")
    ] = "transactional,marketing,marketing.throttled,bulk,bulk.throttled",
    concurrency: Annotated[
        int | None,
        typer.Option(help="Chunks at once; default: worker.concurrency or concurrency_bulk."),
    ] = None,
) -> None:
    """Speaks SMTP: takes chunks from bucket queues."""
    from console.entry import run_worker

    run_worker([name.strip() for name in queues.split(",") if name.strip()], concurrency)


def reputation() -> None:
    """Turns feedback into scores, weights and caps; keeps suppression and journal current."""
    from console.entry import run_reputation

    run_reputation()
