"""``mailweir flower``: Flower with our queue list, authenticated."""

from __future__ import annotations

import typer

from console.output import fail


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("flower")(flower)


def flower() -> None:
    """Run Flower: queue depth and workers in the browser, also while a fleet is down."""
    from console.entry import run_flower
    from mailweir.plumbing.settings import SettingsError

    try:
        run_flower()
    except SettingsError as error:
        fail(str(error))
