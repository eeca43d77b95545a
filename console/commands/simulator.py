"""``mailweir simulator``: mailbox providers on loopback that misbehave on command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from console.output import Exit, Format, OutputOption, emit, fail

Folder = Annotated[
    Path, typer.Option("--folder", help="Folder of witness, MX map and control socket.")
]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Mailbox providers on loopback that misbehave on command (gmail, outlook, yahoo, generic).",
        no_args_is_help=True,
    )
    group.command("run")(run)
    group.command("set")(set_behaviour)
    group.command("reset")(reset)
    group.command("status")(status)
    app.add_typer(group, name="simulator")


def run(
    folder: Folder = Path("data/simulator"),
    keep: Annotated[bool, typer.Option(help="Keep every message's bytes as FILE.eml.")] = False,
    rate: Annotated[float, typer.Option(help="Policy seconds per real second.")] = 1.0,
    origin: Annotated[float, typer.Option(help="Real Unix seconds where both agree.")] = 0.0,
) -> None:
    """Run the providers until Ctrl-C; mx_map.json in the folder is what dns.mx_map wants."""
    from mailweir.plumbing.clock import Clock
    from simulator.control import run as run_simulator

    run_simulator(folder, Clock(origin, rate), keep=keep)


def set_behaviour(
    provider: Annotated[str, typer.Argument(help="Provider to change.")],
    settings: Annotated[list[str], typer.Argument(help="name=value, e.g. outage=0.9 rate=500.")],
    folder: Folder = Path("data/simulator"),
) -> None:
    """Change how a running provider behaves, e.g. ``mailweir simulator set gmail outage=0.9``."""
    behaviour: dict[str, Any] = {}
    for item in settings:
        name, equals, value = item.partition("=")
        if not equals:
            fail(f"{item!r} is not name=value", Exit.USAGE)
        behaviour[name] = _value(value)
    _command(folder, {"do": "set", "provider": provider, "behaviour": behaviour})


def reset(
    provider: Annotated[str, typer.Argument(help="Provider to restore.")],
    folder: Folder = Path("data/simulator"),
) -> None:
    """Give a provider its default behaviour back."""
    _command(folder, {"do": "reset", "provider": provider})


def status(folder: Folder = Path("data/simulator"), output: OutputOption = Format.TABLE) -> None:
    """What each provider received and refused."""
    from console.output import print_rows

    answer = _command(folder, {"do": "status"})
    emit(
        answer,
        output,
        lambda data: print_rows(
            ("provider", "received", "open", "refused"),
            [
                (
                    name,
                    row["received"],
                    row["open"],
                    ", ".join(f"{reply} x{n}" for reply, n in row["refused"].items()) or "-",
                )
                for name, row in data.items()
            ],
        ),
    )


def _value(text: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _command(folder: Path, order: dict[str, Any]) -> dict[str, Any]:
    from simulator.control import SimulatorError, send_command

    try:
        return send_command(folder, order)
    except SimulatorError as error:
        fail(str(error), Exit.FAILURE)
