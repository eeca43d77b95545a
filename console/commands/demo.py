"""``mailweir demo``: see it work in under three minutes."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.output import Exit, fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from console.demo import Demo, Progress


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    jobs: Annotated[int, typer.Option(min=50, max=7500, help="Jobs to send.")] = 5400,
    data: Annotated[Path, typer.Option(help="Folder of the demo; emptied first.")] = Path(
        "data/demo"
    ),
    keep: Annotated[bool, typer.Option(help="Leave everything running afterwards.")] = False,
    summary: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "summary.json"
    ),
    progress: Annotated[bool, typer.Option(help="Show progress.")] = True,
    port: Annotated[int, typer.Option(help="Port of API and console; 0: a free one.")] = 0,
    flower_port: Annotated[int, typer.Option(help="Port of Flower; 0: a free one.")] = 0,
) -> None:
    """Start everything with simulated providers, send real files, break a provider, show the figures.

    Exit 1 when a job was lost or a mail was received twice."""
    from console.demo import Demo, DemoError, fresh, write
    from console.demo_report import readable
    from console.running import StackError
    from console.supervisor import AlreadyRunning
    from simulator.control import SimulatorError

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    data = data.resolve()
    with ExitStack() as cleanup:
        show = _display(cleanup) if progress and sys.stderr.isatty() else _lines(progress)
        run: Demo | None = None
        try:
            fresh(data)
            run = Demo(data, jobs, _say, show, port, flower_port)
            found = run.run(lambda: stopping)
            cleanup.close()
            write(found, summary)
            _say("\n" + readable(found) + f"\n\n  figures in {summary}")
            if keep and not stopping:  # gmail.com is one of the simulated providers here
                _say(run.stack.where_to_look("someone@gmail.com"))
                run.stack.supervisor.run(lambda: stopping)
                _say("stopping: workers end their conversations first (at most 30 s)")
        except (DemoError, StackError, AlreadyRunning, SimulatorError) as error:
            fail(f"demo: {error}", Exit.FAILURE)
        finally:
            if run is not None and hasattr(run, "stack"):
                run.stack.stop()
    if found.lost or found.duplicates or found.waiting:
        fail(
            f"demo: {found.lost} lost, {found.duplicates} duplicates, {found.waiting} not ended",
            Exit.FAILURE,
        )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _display(cleanup: ExitStack) -> Callable[[Progress], None]:
    """A bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    bar = cleanup.enter_context(
        Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
    )
    task = bar.add_task("jobs ended", total=None, note="")

    def show(now: Progress) -> None:
        bar.update(task, total=now.total, completed=_done(now), note=_counts(now))

    return show


def _lines(wanted: bool) -> Callable[[Progress], None]:
    """A line every few seconds where there is no terminal."""
    import time

    last = 0.0

    def show(now: Progress) -> None:
        nonlocal last
        if wanted and time.monotonic() - last >= 5:
            last = time.monotonic()
            sys.stderr.write(f"  {_done(now)}/{now.total} ended: {_counts(now)}\n")

    return show


def _done(now: Progress) -> int:
    from console.demo import SETTLED

    return sum(now.counts.get(state, 0) for state in SETTLED)


def _counts(now: Progress) -> str:
    said = ", ".join(f"{count} {state}" for state, count in sorted(now.counts.items()))
    return f"{said or 'nothing accepted yet'}{'; ' + now.note if now.note else ''}"
