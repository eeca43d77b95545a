"""``mailweir feedback``: what intake would do with a bounce mail, a complaint or a webhook call.

Works with no stack and no settings, also on what is not ours.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from console.output import Exit, Format, OutputOption, emit, fail, print_rows
from mailweir.contracts.events import EventType, Feedback

_FIELDS = ("type", "recipient", "category", "class", "status", "reply", "suppress")


def shown(event: Feedback) -> dict[str, Any]:
    """An event with every field of :data:`_FIELDS`, then whatever else it has."""
    plain: dict[str, Any] = msgspec.to_builtins(event)
    return {name: plain.get(name) for name in _FIELDS} | {
        name: value for name, value in plain.items() if name not in _FIELDS
    }


def _print(events: list[Feedback], output: Format) -> None:
    rows = [shown(event) for event in events]
    emit(
        rows,
        output,
        lambda data: print_rows(_FIELDS, [[_cell(r[f]) for f in _FIELDS] for r in data]),
    )


def _cell(value: Any) -> str:
    """A field in a table; a suppression as its scope and how long it holds."""
    if isinstance(value, dict):
        days = value.get("days")
        return f"{value['scope']}, {days} days" if days else f"{value['scope']}, for ever"
    return "" if value is None else str(value)


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}", Exit.NOT_FOUND)


def parse_command(
    file: Annotated[Path, typer.Argument(help="A mail as it came (RFC 5322), or - for stdin.")],
    output: OutputOption = Format.TABLE,
) -> None:
    """Parse a bounce, complaint or automatic answer."""
    from mailweir.mail.bounce_parse import parse_report

    events = parse_report(_read(file), now=time.time())
    if all(event.type is EventType.UNKNOWN for event in events):
        sys.stderr.write("no bounce, complaint of a reader or automatic answer was recognised\n")
    _print(events, output)


def webhook_command(
    provider: Annotated[str, typer.Option(help="ses, sendgrid, mailgun, postmark, ...")],
    body: Annotated[Path, typer.Option(help="The raw body, or - for stdin.")],
    headers: Annotated[
        Path | None, typer.Option(help="Headers: a JSON object or 'Name: value' lines.")
    ] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(help="File with the secret, public key or certificate; default: unverified."),
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Verify and normalise a webhook call."""
    from reputation.intake.providers import UnknownProvider
    from reputation.intake.webhook import BadPayload, Refused, handle, parse_headers

    secret = _read(secret_file).decode("utf-8", "replace").strip() if secret_file else None
    try:
        raw_headers = parse_headers(_read(headers)) if headers else {}
    except BadPayload as error:
        fail(f"{headers} holds no headers: {error}", Exit.USAGE)
    try:
        taken = handle(provider, raw_headers, _read(body), secret=secret, now=time.time())
    except Refused as error:
        fail(f"refused: {error}", Exit.REFUSED)
    except UnknownProvider as error:
        fail(str(error), Exit.USAGE)
    except BadPayload as error:
        fail(f"not a payload of {provider}: {error}", Exit.FAILURE)
    if secret is None:
        sys.stderr.write("verified: null (no --secret-file)\n")
    if taken.subscription is not None:
        from reputation.intake.confirmation import BY_HAND

        sys.stderr.write(
            "SNS asks to confirm a subscription: the running stack does it for a topic in "
            f"feedback.sns_topics; without feedback.sns_confirm {BY_HAND}\n"
        )
    for problem in taken.problems:
        sys.stderr.write(f"skipped: {problem}\n")
    if not taken.events and not taken.problems and taken.subscription is None:
        sys.stderr.write("nothing in it says what became of a mail\n")
    _print(taken.events, output)


def path_command(
    provider: Annotated[
        str,
        typer.Argument(
            help="ses, sendgrid, mailgun, postmark, ... or seeds, for results of seed-inbox tests."
        ),
    ],
    tenant: Annotated[str, typer.Argument(help="Tenant whose events come there.")] = "default",
) -> None:
    """Print the URL a relay is to post a tenant's events to; nobody can guess it."""
    from console.opening import opened
    from reputation.intake.opening import webhook_path
    from reputation.intake.providers import UnknownProvider

    with opened() as (settings, _):
        try:
            path = webhook_path(settings, provider, tenant)
        except UnknownProvider as error:
            fail(str(error), Exit.USAGE)
    sys.stdout.write(f"{settings.web.public_url.rstrip('/')}{path}\n")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    feedback = typer.Typer(
        no_args_is_help=True, help="Show what intake would do with mail or a webhook call."
    )
    feedback.command("parse")(parse_command)
    feedback.command("webhook")(webhook_command)
    feedback.command("webhook-path")(path_command)
    app.add_typer(feedback, name="feedback")
