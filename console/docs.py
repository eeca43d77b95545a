"""Generates the reference pages from the code: ``python -m console.docs [--check]``.

``docs/settings.md`` from the settings tree, ``docs/cli.md`` from the commands, ``docs/lifecycle.md`` from
the table of states, the diagram in ``docs/reputation.md`` from the states of a path. ``--check`` writes
nothing and exits 1 when a page is not what the code says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mailweir.contracts import lifecycle
from mailweir.plumbing.settings import Settings
from reputation.policy import states

DOCS = Path(__file__).resolve().parent.parent / "docs"


def settings_page() -> str:
    """Every setting with its name, environment variable, default and meaning with its unit."""
    lines = [
        "# Settings",
        "",
        "Generated from `mailweir/plumbing/settings.py`; change it there. Read from defaults, then",
        "`mailweir.toml` in the data directory, then `MAILWEIR_*` environment variables; the later wins.",
        "A section of the TOML file is a table (`[worker]`), its names are the part after the dot.",
        "",
    ]
    sections: list[tuple[str, type[BaseModel]]] = []
    lines += _head("General")
    for name, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            sections.append((name, info.annotation))
        else:
            lines.append(_row(name, f"MAILWEIR_{name.upper()}", info))
    for section, model in sections:
        lines += _head(section, (model.__doc__ or "") if "__doc__" in vars(model) else "")
        for name, info in model.model_fields.items():
            variable = f"MAILWEIR_{section.upper()}__{name.upper()}"
            lines.append(_row(f"{section}.{name}", variable, info))
    return "\n".join(lines) + "\n"


def lifecycle_page() -> str:
    """States, moves and what they mean."""
    lines = [
        "# The life of a job",
        "",
        "Drawn from `mailweir/contracts/lifecycle.py`; change it there. Waiting states carry a due time,",
        "final ones never move (a delivery report may still turn *sent* into *bounced*).",
        "",
        "| state | kind | may become |",
        "|---|---|---|",
    ]
    for state in lifecycle.State:
        kind = (
            "waiting"
            if state in lifecycle.WAITING
            else "in flight"
            if state in lifecycle.IN_FLIGHT
            else "final"
            if state in lifecycle.FINAL
            else ""
        )
        moves = ", ".join(sorted(lifecycle.MOVES[state])) or "nothing"
        lines.append(f"| {state} | {kind} | {moves} |")
    lines += ["", "```mermaid", "stateDiagram-v2"]
    for state in lifecycle.State:
        lines += [f"    {state} --> {to}" for to in sorted(lifecycle.MOVES[state])]
    lines += ["```", ""]
    return "\n".join(lines)


def cli_page() -> str:
    """Every command with its options."""
    from console.cli import build

    lines = [
        "# Commands",
        "",
        "Generated from `console/commands`; change them there. Reading commands take `-o json`.",
        "",
        "Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 refused or unsafe, 75 temporary failure.",
        "",
    ]
    root = typer.main.get_command(build())
    for path, command in _commands("mailweir", root):
        lines += [f"## {path}", "", (command.help or "").strip(), ""]
        rows = [_parameter(p) for p in command.params if not getattr(p, "hidden", False)]
        rows = [row for row in rows if row]
        if rows:
            lines += ["| argument or option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def reputation_page() -> str:
    """The page as it is written, with the diagram of the states of a path in force."""
    text = (DOCS / "reputation.md").read_text()
    drawn = f"```mermaid\n{states.mermaid()}\n```"
    return re.sub(r"```mermaid\n.*?\n```", lambda _: drawn, text, count=1, flags=re.DOTALL)


PAGES = {
    "settings.md": settings_page,
    "lifecycle.md": lifecycle_page,
    "cli.md": cli_page,
    "reputation.md": reputation_page,
}


def main(arguments: list[str]) -> int:
    """Write the pages, or check them."""
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in arguments:
            stale.append(name)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run: make docs\n")
    return 1 if stale else 0


def _head(title: str, text: str = "") -> list[str]:
    return [
        "",
        f"## {title}",
        "",
        *([text.strip(), ""] if text else []),
        "| setting | environment | default | meaning |",
        "|---|---|---|---|",
    ]


def _row(name: str, variable: str, info: FieldInfo) -> str:
    default: Any = info.get_default(call_default_factory=True, validated_data={})
    shown = "" if default is PydanticUndefined or default is None else f"`{default}`"
    return f"| `{name}` | `{variable}` | {shown} | {_cell(info.description or '')} |"


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    # typer brings a click of its own, so its classes are asked by what they have
    members = getattr(command, "commands", None)
    if members is None:
        yield path, command
        return
    for name in sorted(members):
        yield from _commands(f"{path} {name}", members[name])


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"| `{parameter.name.upper()}` | {_cell(getattr(parameter, 'help', None) or '')} |"
    if "--help" in parameter.opts:
        return ""
    default = parameter.default
    shown = "" if default in (None, False, ()) or callable(default) else f" Default: `{default}`."
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return f"| `{names}` | {_cell(parameter.help or '')}{shown} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
