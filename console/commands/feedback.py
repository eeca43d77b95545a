"""``mailweir feedback``: what intake would do with a bounce mail, a complaint or a webhook call."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    feedback = typer.Typer(help="Show what intake would do with mail or a webhook call.")
    app.add_typer(feedback, name="feedback")
