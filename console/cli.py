"""The ``mailweir`` command: one noun, one file in ``console/commands``."""

from __future__ import annotations

import importlib

import typer

# Each module has ``register(app: typer.Typer) -> None`` and imports what is heavy inside its functions.
COMMANDS: tuple[str, ...] = (
    "audit",
    "classify",
    "db",
    "demo",
    "feedback",
    "flower",
    "keys",
    "look",
    "pause",
    "policy",
    "reputation",
    "route",
    "simulator",
    "suppress",
    "run",
    "send",
    "up",
    "warmup",
)


def build() -> typer.Typer:
    """The command with every noun registered."""
    app = typer.Typer(
        name="mailweir",
        help="E-mail delivery a team runs itself: routes from live reputation, exact limits, "
        "nothing lost.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in COMMANDS:
        importlib.import_module(f"console.commands.{name}").register(app)
    return app


def main() -> None:
    """Entry point."""
    build()()
