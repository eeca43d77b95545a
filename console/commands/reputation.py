"""``mailweir reputation``: how paths stand and why, and simulations of the same policy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from console.output import Exit, Format, OutputOption, emit, fail, print_rows


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="How each path stands, and why.", no_args_is_help=True)
    group.command("show")(show)
    group.command("simulate")(simulate)
    group.command("states")(states)
    group.command("seeds")(seeds)
    app.add_typer(group, name="reputation")


def show(
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Score, weight, state, reasons and newest seed-inbox test of every path of the snapshot in force."""
    import msgspec

    from console.opening import opened
    from reputation import publisher, signals

    with opened() as (_, database):
        with database.read() as conn:
            snapshot = publisher.last(conn)
        seeds = signals.placements(database)
    if snapshot is None:
        fail("no routing snapshot yet: the reputation process publishes it", Exit.NOT_FOUND)
    paths = []
    for name, state in sorted(snapshot.paths.items()):
        parts = name.split("|")
        if source not in (None, parts[0]) or provider not in (None, parts[1]):
            continue
        fields = dict(zip(("source", "provider", "bucket"), parts, strict=True))
        inbox, tested = seeds.get((parts[0], parts[1]), (None, None))
        tests = {"inbox": inbox, "inbox_tested_at": tested}
        paths.append(fields | msgspec.structs.asdict(state) | tests)
    answer = {
        "version": snapshot.version,
        "created_at": snapshot.created_at,
        "policy_version": snapshot.policy_version,
        "paused": snapshot.paused,
        "paths": paths,
    }

    def table(data: dict[str, Any]) -> None:
        names = (
            "source",
            "provider",
            "bucket",
            "state",
            "score",
            "weight",
            "cap_day",
            "confidence",
            "inbox",
        )
        print_rows(
            (*names, "reasons"),
            [
                (*["" if row[n] is None else row[n] for n in names], "; ".join(row["reasons"]))
                for row in data["paths"]
            ],
            title=f"snapshot {data['version']}",
        )

    emit(answer, output, table)


def _days(days: float) -> Callable[[float], None]:
    """Shows on a terminal which day is simulated."""
    if not sys.stderr.isatty():
        return lambda day: None

    def tell(day: float) -> None:
        end = "\n" if day >= days - 0.04 else "\r"  # told by the hour
        sys.stderr.write(f"day {min(day, days):.0f} of {days:.0f}{end}")

    return tell


def simulate(
    scenario: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Scenario file.")],
    plot: Annotated[list[Path] | None, typer.Option(help="Draw to this .png or .svg.")] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Run sources against modelled providers over simulated weeks; needs no running stack."""
    import msgspec

    from reputation.simulate import BadScenario, daily, load, run
    from reputation.simulate_plot import NoPlots, draw

    for file in plot or ():  # before the minute that a long scenario may take
        if file.suffix not in (".png", ".svg"):
            fail(f"{file}: give a name that ends in .png or .svg", Exit.USAGE)
        if not file.parent.is_dir():
            fail(f"{file}: there is no folder {file.parent}", Exit.USAGE)
    try:
        asked = load(scenario.read_text(encoding="utf-8"))
    except (BadScenario, UnicodeDecodeError) as error:
        fail(f"{scenario}: {error}", Exit.USAGE)
    result = run(asked, progress=_days(asked.days))
    for file in plot or ():
        try:
            draw(result, file)
        except NoPlots as error:
            fail(str(error), Exit.FAILURE)
        except OSError as error:
            fail(f"cannot write {file}: {error.strerror}", Exit.FAILURE)
    answer = {
        "name": result.name,
        "sent": result.sent,
        "waiting": result.waiting,
        "cap_exceeded": result.cap_exceeded,
        "moves": msgspec.to_builtins(result.moves),
        "days": daily(result),
    }

    def table(data: dict[str, Any]) -> None:
        names = ("day", "source", "provider", "state", "cap", "volume", "score", "weight")
        rows = [["" if row[n] is None else row[n] for n in names] for row in data["days"]]
        print_rows(names, rows, title=data["name"])
        print_rows(
            ("day", "path", "becomes", "because"),
            [(f"{day:.2f}", path, state, why) for day, path, state, why in data["moves"]],
        )
        totals = ("sent", "waiting", "cap_exceeded")
        print_rows(totals, [[data[name] for name in totals]])

    emit(answer, output, table)


def states(output: OutputOption = Format.TABLE) -> None:
    """The states of a path and the allowed moves; as a table or (yaml, json) as data."""
    from reputation.policy.states import MOVES, mermaid

    data = {str(old): {str(new): why for new, why in moves.items()} for old, moves in MOVES.items()}
    emit(data, output, lambda _: typer.echo(mermaid()))


def seeds(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="JSON or CSV of results.")
    ],
    output: OutputOption = Format.TABLE,
) -> None:
    """Take in results of a seed-inbox placement test (S56)."""
    from console.opening import clock_of, opened
    from reputation.signals import BadResults, keep_placement, read_results

    try:
        found = read_results(file.read_text(encoding="utf-8"))
    except (BadResults, UnicodeDecodeError) as error:
        fail(f"{file}: {error}", Exit.USAGE)
    with opened() as (settings, database):
        shares = keep_placement(database, found, clock_of(settings).now())
    rows = [
        {"source": source, "provider": provider, "inbox": round(share, 4)}
        for (source, provider), share in sorted(shares.items())
    ]
    emit(
        rows,
        output,
        lambda data: print_rows(
            ("source", "provider", "inbox"), [list(row.values()) for row in data]
        ),
    )
