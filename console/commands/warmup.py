"""``mailweir warmup``: how a new source grows at each provider."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from console.output import Exit, Format, OutputOption, emit, fail, print_rows


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="Warming up new sources.", no_args_is_help=True)
    group.command("plan")(plan)
    group.command("status")(status)
    app.add_typer(group, name="warmup")


def plan(
    provider: Annotated[str, typer.Option(help="Mailbox provider, e.g. gmail.")],
    start: Annotated[float | None, typer.Option(help="Jobs on the first day.")] = None,
    growth: Annotated[float | None, typer.Option(help="Growth a day, 0.10 to 0.30.")] = None,
    days: Annotated[int, typer.Option(min=1, max=1000, help="Days to show.")] = 42,
    max_step: Annotated[float | None, typer.Option(help="Largest growth of one day, jobs.")] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """The daily cap of each day if every day is earned; needs no running stack."""
    import msgspec

    from mailweir.contracts.policy import Warmup
    from mailweir.mail.providers import known_provider
    from reputation.policy.warmup import BadPlan, checked, curve, plan_for

    name = known_provider(provider) or provider.strip().lower()
    try:
        chosen = plan_for(Warmup(), name)
        given = {"start": start, "growth": growth, "max_step": max_step}
        chosen = checked(
            msgspec.structs.replace(chosen, **{k: v for k, v in given.items() if v is not None})
        )
    except BadPlan as error:
        fail(str(error), Exit.USAGE)
    rows = [{"day": day, "cap": cap} for day, cap in enumerate(curve(chosen, days), 1)]
    answer = {
        "provider": name,
        "start": chosen.start,
        "growth": chosen.growth,
        "max_step": chosen.max_step,
        "days": days,
        "curve": rows,
    }
    emit(answer, output, _curve_table)


def status(output: OutputOption = Format.TABLE) -> None:
    """Where each warming source stands at each provider."""
    from console.opening import clock_of, opened
    from mailweir.contracts.policy import Policy
    from reputation import history
    from reputation.policy.book import Book
    from reputation.policy.warmup import caps

    with opened() as (settings, database):
        book = Book(Policy())
        history.restore(database, book)
        today = int(clock_of(settings).now() // 86400)
    rows = [
        {
            "source": source,
            "provider": provider,
            "cap_day": caps(w)[0],
            "cap_hour": caps(w)[1],
            "used_today": w.used if w.day == today else 0,
            "earned_days": w.step,
            "idle_days": max(0, today - w.last_used),
            "reason": w.reason,
        }
        for (source, provider), w in sorted(book.warm.items())
    ]

    def table(data: list[dict[str, Any]]) -> None:
        names = ("source", "provider", "cap_day", "cap_hour", "used_today", "earned_days", "reason")
        print_rows(names, [[row[name] for name in names] for row in data])

    emit(rows, output, table)


def _curve_table(data: dict[str, Any]) -> None:
    print_rows(
        ("day", "cap"),
        [(row["day"], f"{row['cap']:,}") for row in data["curve"]],
        title=f"{data['provider']}: start {data['start']:g}, +{data['growth']:.0%} a day",
    )
