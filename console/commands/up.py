"""``mailweir up``: the whole of Mailweir on this machine, supervised."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from console.output import Exit, fail


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("up")(up)


def up(
    data: Annotated[
        Path,
        typer.Option(help="Data directory: spool, server, keys, logs.", envvar="MAILWEIR_DATA"),
    ] = Path("data"),
    port: Annotated[int | None, typer.Option(help="Port of API and console.")] = None,
    flower_port: Annotated[int | None, typer.Option(help="Port of Flower.")] = None,
    smtp_port: Annotated[int | None, typer.Option(help="Port of the SMTP door.")] = None,
) -> None:
    """Start and supervise everything here: SQLite, private Valkey/Redis, web, router, workers,
    reputation, Flower. Ctrl-C stops it cleanly; start it again and it goes on where it was."""
    from console.running import Stack, StackError
    from console.supervisor import AlreadyRunning
    from mailweir.plumbing.settings import SettingsError

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        stack = Stack(
            data.resolve(), port=port, flower_port=flower_port, smtp_port=smtp_port, say=_say
        )
        stack.start(lambda: stopping)
    except (AlreadyRunning, SettingsError, StackError) as error:
        fail(str(error), Exit.FAILURE)
    _say(stack.where_to_look())
    stack.supervisor.run(lambda: stopping)
    _say("stopping: workers end their conversations first (at most 30 s)")
    killed = stack.stop()
    if killed:
        fail(f"had to kill: {', '.join(killed)}; nothing is lost, the spool knows", Exit.FAILURE)
    _say("stopped")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
