"""``mailweir send``: one message from flags, ready .eml files, or a mail merge over a CSV file.

Everything goes through the HTTP door with the client services use. The API is found by ``--url`` and
``MAILWEIR_API_KEY``, else ``MAILWEIR_URL``, else the stack of the data directory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from console.output import Exit, Format, OutputOption, emit, fail, print_rows

if TYPE_CHECKING:
    from console.sending.merge import Summary
    from mailweir.contracts.job import Accepted
    from producer.client import Client
    from producer.errors import MailError
    from producer.message import Message


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(send)


def send(
    files: Annotated[
        list[Path] | None, typer.Argument(help="More .eml files, with --eml.", show_default=False)
    ] = None,
    from_: Annotated[str | None, typer.Option("-f", "--from", help="Sender, 'Name <a@b>'.")] = None,
    to: Annotated[list[str] | None, typer.Option("-t", "--to", help="Recipient.")] = None,
    cc: Annotated[list[str] | None, typer.Option(help="Copy.")] = None,
    bcc: Annotated[list[str] | None, typer.Option(help="Blind copy.")] = None,
    subject: Annotated[str | None, typer.Option("-s", "--subject", help="Subject.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Plain body; default: standard input.", show_default=False)
    ] = None,
    html: Annotated[str | None, typer.Option(help="HTML body.")] = None,
    attach: Annotated[list[Path] | None, typer.Option(help="File to attach.")] = None,
    eml: Annotated[
        list[Path] | None,
        typer.Option(
            help="Ready message; sent byte for byte. To, Cc and Bcc name the recipients unless -t does."
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Recipients: a header row, a column email.")
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="Directory with subject.txt, body.txt, body.html.")
    ] = None,
    bucket: Annotated[
        str | None, typer.Option(help="transactional (default), marketing or bulk.")
    ] = None,
    campaign: Annotated[str | None, typer.Option(help="Label of the campaign.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag.")] = None,
    priority: Annotated[int | None, typer.Option(min=1, max=10, help="1 first to 10.")] = None,
    unsubscribe: Annotated[
        bool | None,
        typer.Option(help="Add our one-click link; default: for marketing and bulk."),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key again sends nothing twice.")
    ] = None,
    sandbox: Annotated[bool, typer.Option(help="Goes the whole way but never leaves.")] = False,
    url: Annotated[
        str | None, typer.Option(help="API; default: MAILWEIR_URL or the stack.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data directory of the stack.")] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Send mail. Exit codes: 0 all accepted, 2 usage, 4 something was refused, 75 try again."""
    from producer.errors import MailError

    options: dict[str, Any] = {
        "bucket": bucket,
        "campaign": campaign,
        "tags": tag or (),
        "priority": priority,
        "sandbox": sandbox,
    }
    client = _client(url, data)
    with client:
        try:
            if csv is not None:
                if template is None:
                    fail("--csv needs --template DIR", Exit.USAGE)
                _send_csv(
                    client, csv, template, from_, unsubscribe, idempotency_key, options, output
                )
            elif eml or files:
                if not eml:
                    fail("files are .eml messages: write --eml before them", Exit.USAGE)
                paths = [*eml, *(files or [])]
                link = False if unsubscribe is None else unsubscribe
                if cc or bcc or subject or text or html or attach:
                    fail(
                        "an .eml brings its own headers and body; -f and -t go with it", Exit.USAGE
                    )
                _send_files(client, paths, from_, to or [], link, idempotency_key, options, output)
            else:
                if template is not None:
                    fail("--template needs --csv FILE", Exit.USAGE)
                if not from_ or not to:
                    fail("say who sends (-f) and to whom (-t)", Exit.USAGE)
                if text is None and html is None:
                    text = sys.stdin.read()
                message = _message(
                    from_, to, cc or [], bcc or [], subject, text, html, attach or [],
                    _link(unsubscribe, bucket), idempotency_key, options,
                )  # fmt: skip
                _show([client.send(message)], output)
        except MailError as error:
            _give_up(error)


def _message(
    from_: str,
    to: list[str],
    cc: list[str],
    bcc: list[str],
    subject: str | None,
    text: str | None,
    html: str | None,
    attach: list[Path],
    unsubscribe: bool,
    key: str | None,
    options: dict[str, Any],
) -> Message:
    from producer.message import Attachment, Message

    try:
        attachments = [Attachment.from_path(path) for path in attach]
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", Exit.USAGE)
    return Message(
        from_=from_,
        to=to,
        cc=cc,
        bcc=bcc,
        subject=subject,
        text=text,
        html=html,
        attachments=attachments,
        unsubscribe=unsubscribe,
        idempotency_key=key,
        **options,
    )


def _send_files(
    client: Client,
    paths: list[Path],
    from_: str | None,
    to: list[str],
    unsubscribe: bool,
    key: str | None,
    options: dict[str, Any],
    output: Format,
) -> None:
    """Each file is a message; one that is refused does not stop the others."""
    from producer.errors import MailError
    from producer.message import Message

    accepted: list[Accepted] = []
    refused = 0
    for number, path in enumerate(paths):
        try:
            raw = path.read_bytes()
        except OSError as error:
            sys.stderr.write(f"{path}: {error.strerror}\n")
            refused += 1
            continue
        own = None if key is None else key if len(paths) == 1 else f"{key}:{number}"
        message = Message(
            raw=raw, from_=from_, to=to, unsubscribe=unsubscribe, idempotency_key=own, **options
        )
        try:
            accepted.append(client.send(message))
        except MailError as error:
            if error.retryable or error.code in ("unauthorized", "forbidden"):
                raise
            sys.stderr.write(f"{path}: {error}\n")
            refused += 1
    _show(accepted, output)
    if refused:
        raise typer.Exit(int(Exit.REFUSED))


def _send_csv(
    client: Client,
    path: Path,
    template: Path,
    from_: str | None,
    unsubscribe: bool | None,
    key: str | None,
    options: dict[str, Any],
    output: Format,
) -> None:
    import secrets

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from console.sending.folder import BadFolder, read_folder
    from console.sending.merge import merge
    from console.sending.rows import BadFile, CsvRows
    from producer.message import Address, Message

    try:
        folder = read_folder(template)
        file = path.open("rb")
    except BadFolder as error:
        fail(str(error), Exit.USAGE)
    except OSError as error:
        fail(f"{path}: {error.strerror}", Exit.USAGE)
    own = folder.defaults
    sender = from_ or own.from_
    if not sender:
        fail("say who sends: -f, or from in template.toml", Exit.USAGE)
    options = options | {
        "bucket": options["bucket"] or own.bucket,
        "campaign": options["campaign"] or own.campaign,
        "tags": options["tags"] or own.tags,
    }
    link = _link(unsubscribe, options["bucket"])
    with (
        file,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  {task.fields[accepted]} accepted"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        ) as bar,
    ):
        rows = CsvRows(file)
        total = os.fstat(file.fileno()).st_size
        task = bar.add_task("sending", total=total or None, accepted=0)
        stored = client.store_template(folder.template)

        def message(recipients: list[Address], chunk_key: str) -> Message:
            return Message(
                from_=sender,
                to=recipients,
                template=stored.id,
                reply_to=own.reply_to,
                unsubscribe=link,
                idempotency_key=chunk_key,
                partial=True,
                **options,
            )

        def report(line: int, why: str) -> None:
            # one line each, also where a log or a pipe is 80 columns wide
            bar.console.print(
                f"{path}:{line}: {why}", highlight=False, markup=False, soft_wrap=True
            )

        def progress(summary: Summary) -> None:
            bar.update(task, completed=rows.position, accepted=summary.accepted)

        try:
            run = key or f"send:{secrets.token_hex(8)}"
            summary = merge(client, rows, message, run, report, progress)
        except BadFile as error:
            fail(f"{path}: {error}", Exit.USAGE)
    emit(
        {
            "accepted": summary.accepted,
            "duplicates": summary.duplicates,
            "refused": summary.refused,
            "idempotency_key": run,
            "messages": summary.messages,
            "problems": summary.problems,
        },
        output,
        lambda _: typer.echo(
            f"{summary.accepted} accepted, {summary.duplicates} duplicates, {summary.refused} refused"
        ),
    )
    if summary.refused:
        raise typer.Exit(int(Exit.REFUSED))


def _link(unsubscribe: bool | None, bucket: str | None) -> bool:
    return bucket in ("marketing", "bulk") if unsubscribe is None else unsubscribe


def _show(answers: list[Accepted], output: Format) -> None:

    def table(_: list[Accepted]) -> None:
        rows = [(a.id, j.recipient, j.id, j.status) for a in answers for j in a.jobs]
        if rows:
            print_rows(("message", "recipient", "job", "status"), rows)

    emit(answers, output, table)


def _client(url: str | None, data: Path | None) -> Client:
    from mailweir.plumbing.settings import SettingsError, load
    from producer.client import Client
    from producer.errors import ConfigurationError

    key: str | None = None
    if url is None and not os.environ.get("MAILWEIR_URL"):
        try:
            settings = load(data)
        except SettingsError as error:
            fail(str(error), Exit.USAGE)
        running = settings.data / "url"  # written by `mailweir up`
        url = (
            running.read_text().strip()
            if running.exists()
            else f"http://{settings.web.host}:{settings.web.port}"
        )
        if not os.environ.get("MAILWEIR_API_KEY"):
            try:
                key = (settings.data / "api.key").read_text().strip()
            except OSError:
                fail(
                    f"no API key: start the stack (mailweir up --data {settings.data}), "
                    "or set MAILWEIR_URL and MAILWEIR_API_KEY",
                    Exit.USAGE,
                )
    try:
        return Client(url, key)
    except ConfigurationError as error:
        fail(str(error), Exit.USAGE)


def _give_up(error: MailError) -> NoReturn:
    if error.retryable:
        fail(f"not accepted, try again: {error}", Exit.TEMPFAIL)
    fail(f"refused: {error}", Exit.REFUSED)
