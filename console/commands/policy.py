"""``mailweir policy``: check, compare, rehearse, apply and take back routing policies."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from console.output import Exit, Format, OutputOption, emit, fail, print_rows

if TYPE_CHECKING:
    from mailweir.contracts.job import Job
    from mailweir.contracts.policy import Policy
    from mailweir.plumbing.database import Database
    from router.policy.problems import Loaded
    from router.policy.simulate import Scene

MOST_ROWS = 20  # of a table for people; -o json has all

FileArgument = Annotated[Path, typer.Argument(help="Policy file (YAML); '-': standard input.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Routing policies: check, rehearse, apply, go back.", no_args_is_help=True
    )
    for command in (lint, show, diff, simulate, apply, rollback, history, arms, schema):
        group.command(command.__name__)(command)
    app.add_typer(group, name="policy")


def lint(file: FileArgument, output: OutputOption = Format.TABLE) -> None:
    """Check a policy file. Exit 4 when it has errors, 0 with warnings only."""
    import msgspec

    loaded = _load(file)
    body = {
        "ok": loaded.ok,
        "complete": loaded.complete,
        "problems": [msgspec.to_builtins(p) for p in loaded.problems],
    }
    emit(body, output, lambda _: _print_problems(loaded))
    if not loaded.ok:
        raise typer.Exit(int(Exit.REFUSED))


def _print_problems(loaded: Loaded) -> None:
    for problem in loaded.problems:
        sys.stdout.write(f"{problem}\n")
    warnings = len(loaded.problems) - len(loaded.errors)
    if not loaded.complete:
        sys.stdout.write("names and what they lead to are checked once these are mended\n")
    sys.stdout.write(f"{_count(len(loaded.errors), 'error')}, {_count(warnings, 'warning')}\n")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def show(
    version: Annotated[int | None, typer.Argument(help="Version; default: the live one.")] = None,
    compiled: Annotated[bool, typer.Option(help="What it means, with every default.")] = False,
    output: OutputOption = Format.YAML,
) -> None:
    """Print a policy as it was applied, or compiled."""
    from console.opening import opened

    with opened() as (_, database):
        number, text, policy = _stored(database, version)
    if text and not compiled and output in (Format.YAML, Format.TABLE):
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    emit({"version": number, "policy": policy}, Format.YAML if output is Format.TABLE else output)


def diff(
    file: FileArgument,
    other: Annotated[
        Path | None, typer.Argument(help="Second file; default: the first against the live policy.")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """What changes: from the live policy to FILE, or from FILE to OTHER."""
    import msgspec

    from router.policy.differences import diff as run

    first = _checked(file).policy
    old, new = (_live(), first) if other is None else (first, _checked(other).policy)
    changes = run(old, new)
    emit(
        [msgspec.to_builtins(change) for change in changes],
        output,
        lambda _: (
            print_rows(
                ("what", "before", "after"),
                [(c.path, _brief(c.before), _brief(c.after)) for c in changes],
            )
            if changes
            else _say("no difference")
        ),
    )


def _brief(value: Any) -> str:
    import msgspec

    return "-" if value is None else msgspec.json.encode(value).decode()


def simulate(
    file: FileArgument,
    jobs: Annotated[
        Path | None,
        typer.Option("--jobs", help="JSONL, one job a line as the HTTP door takes it; '-': stdin."),
    ] = None,
    recorded: Annotated[
        int,
        typer.Option("--recorded", min=1, max=100_000, help="Else: this many latest decisions."),
    ] = 1000,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Policy to compare with; default: the live one."),
    ] = None,
    snapshot: Annotated[
        Path | None, typer.Option("--snapshot", help="Snapshot file, as for route explain.")
    ] = None,
    at: Annotated[str | None, typer.Option("--at", help="Time, ISO 8601; default: now.")] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Rehearse a policy: volumes, what waits or ends, limit hits, and the time the backlog needs.

    Recorded decisions are made again with the snapshot of their time and what they tell of the paths.
    """
    import msgspec

    from console.output import track
    from router.policy.simulate import compare, rehearse

    candidate = _checked(file).policy
    if jobs is None and (snapshot or at):
        fail("recorded decisions bring their snapshot and time; these go with --jobs", Exit.USAGE)
    scenes = _recorded(recorded) if jobs is None else [_scene(jobs, snapshot, at)]
    result, ways = rehearse(candidate, track(scenes, "deciding by the candidate"))
    body: dict[str, Any] = {"candidate": msgspec.to_builtins(result)}
    old = _checked(against).policy if against is not None else (None if jobs else _live())
    if old is not None:
        before, old_ways = rehearse(old, track(scenes, "deciding by the other"))
        body["change"] = compare(before, result, old_ways, ways)
    emit(body, output, _print_rehearsal)


def _print_rehearsal(body: dict[str, Any]) -> None:
    result = body["candidate"]
    for name in ("pools", "sources", "providers", "queues", "held", "refused", "limit_hits"):
        if result[name]:
            rows: list[tuple[str, object]] = list(result[name].items())
            if len(rows) > MOST_ROWS:
                rest = rows[MOST_ROWS:]
                jobs = sum(count for _, count in rest if isinstance(count, int))
                rows = [*rows[:MOST_ROWS], (f"and {len(rest)} others", jobs)]
            print_rows((name.replace("_", " "), "jobs"), rows)
    sys.stdout.write(f"{result['jobs']} jobs; the backlog needs {result['seconds']:g} s")
    sys.stdout.write(f" ({result['slowest']})\n" if result["slowest"] else "\n")
    if change := body.get("change"):
        sys.stdout.write(f"{change['moved']} jobs go another way\n")
        for name in ("pools", "sources"):
            changes = [(key, f"{by:+d}") for key, by in change[name].items()]
            if changes:
                print_rows((f"change of {name}", "jobs"), changes)


def apply(
    file: FileArgument,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; kept in the history.")],
    author: Annotated[
        str | None, typer.Option("--author", help="Default: the system's user.")
    ] = None,
    approver: Annotated[str | None, typer.Option("--approver", help="Who agreed.")] = None,
    canary: Annotated[int, typer.Option("--canary", min=1, max=100, help="Percent of jobs.")] = 100,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Decide nothing; log where it would differ.")
    ] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Put a policy in force within 2 s. One with errors is refused (exit 4) and the running one stays."""
    from console.opening import clock_of, opened
    from mailweir.plumbing import policies

    if shadow and canary != 100:
        fail("a shadow decides nothing: give --canary or --shadow, not both", Exit.USAGE)
    if not reason.strip():
        fail("--reason is empty: say why, for those who read the history", Exit.USAGE)
    data = _read(file)
    loaded = _checked(file, data)
    for problem in loaded.problems:
        sys.stderr.write(f"{problem}\n")
    with opened() as (settings, database):
        if settings.geo.database is None and any(rule.match.geo for rule in loaded.policy.rules):
            sys.stderr.write("no geo.database is set: rules with geo match nothing\n")
        version = policies.apply(
            database,
            loaded.policy,
            data.decode("utf-8-sig"),
            author=author or getpass.getuser(),
            approver=approver,
            reason=reason,
            now=clock_of(settings).now(),
            canary=canary,
            shadow=shadow,
            redis=_redis(settings),
        )
    part = "shadow" if shadow else ("in force" if canary == 100 else f"in force for {canary} %")
    emit({"version": version}, output, lambda _: _say(f"version {version}: {part}"))


def rollback(
    to: Annotated[int | None, typer.Argument(help="Version; default: the one before.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", "-m", help="Why.")] = None,
    author: Annotated[
        str | None, typer.Option("--author", help="Default: the system's user.")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Go back: end a canary or shadow if there is one, else return to the live version before."""
    from console.opening import clock_of, opened
    from mailweir.plumbing import policies

    with opened() as (settings, database):
        try:
            version = policies.rollback(
                database,
                author=author or getpass.getuser(),
                reason=reason,
                now=clock_of(settings).now(),
                to=to,
                redis=_redis(settings),
            )
        except (policies.UnknownVersion, policies.NoPolicy) as error:
            fail(str(error), Exit.NOT_FOUND)
    emit({"version": version}, output, lambda _: _say(f"version {version}: in force"))


def history(
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000)] = 20,
    output: OutputOption = Format.TABLE,
) -> None:
    """The versions, newest first, with author and reason."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    from console.opening import opened
    from mailweir.plumbing import policies

    with opened() as (_, database):
        versions = policies.history(database, limit)
    emit(
        [asdict(v) for v in versions],
        output,
        lambda _: print_rows(
            ("version", "at", "author", "approver", "percent", "mode", "reason"),
            [
                (
                    v.version,
                    datetime.fromtimestamp(v.at, UTC).strftime("%Y-%m-%d %H:%M:%S"),
                    v.author,
                    v.approver or "-",
                    v.canary,
                    v.mode,
                    v.reason or "-",
                )
                for v in versions
            ],
        ),
    )


def arms(
    split: Annotated[str | None, typer.Option("--split", help="Only this A/B split.")] = None,
    days: Annotated[
        float, typer.Option("--days", min=0.001, help="Jobs accepted since so many real days.")
    ] = 30.0,
    output: OutputOption = Format.TABLE,
) -> None:
    """What became of the jobs of each arm of A/B splits: sent, deferrals, bounces, complaints, latency,
    opens, clicks, unsubscribes."""
    import time

    import msgspec

    from console.arms import measure, seen
    from console.opening import opened

    with opened() as (_, database):
        found = measure(seen(database, time.time() - days * 86_400, split))
    first = ("arm", "jobs", "sent_rate", "deferral_rate", "bounce_rate", "complaint_rate")
    names = (*first, "open_rate", "click_rate", "unsubscribe_rate", "latency_p50", "latency_p95")
    emit(
        [msgspec.to_builtins(arm) for arm in found],
        output,
        lambda rows: print_rows(
            tuple(name.replace("_", " ") for name in names),
            [tuple("-" if row[name] is None else row[name] for name in names) for row in rows],
        ),
    )


def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The reference in place of it.")
    ] = False,
) -> None:
    """Print the JSON schema of policy files, for editors."""
    from router.policy.schema import json_schema, reference

    if markdown:
        sys.stdout.write(reference())
        return
    emit(json_schema(), Format.JSON)


# --- what the commands share -------------------------------------------------------------------


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _read(file: Path) -> bytes:
    from console.commands.route import read_bytes

    return read_bytes(file)


def _load(file: Path, data: bytes | None = None) -> Loaded:
    from router.policy.loader import load

    return load(_read(file) if data is None else data, file=str(file))


def _checked(file: Path, data: bytes | None = None) -> Loaded:
    loaded = _load(file, data)
    if not loaded.ok:
        fail("\n".join(str(p) for p in loaded.errors), Exit.REFUSED)
    return loaded


def _stored(database: Database, version: int | None) -> tuple[int, str, Policy]:
    from mailweir.plumbing import policies

    try:
        return policies.stored(database, version)
    except (policies.UnknownVersion, policies.NoPolicy) as error:
        fail(str(error), Exit.NOT_FOUND)


def _live() -> Policy:
    from console.opening import opened

    with opened() as (_, database):
        return _stored(database, None)[2]


def _redis(settings: Any) -> Any:
    """The state server, or None with a word where it does not answer: watches ask SQL too."""
    from redis.exceptions import RedisError

    from mailweir.plumbing.redis import connect

    client = connect(settings)
    try:
        client.ping()
    except RedisError:
        sys.stderr.write("the state server does not answer; processes will see it in the spool\n")
        return None
    return client


def _read_jobs(path: Path, now: float) -> list[Job]:
    import json

    from router.policy.jobs import BadJob, jobs_of

    out: list[Job] = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            out.extend(jobs_of(json.loads(line), now, first_id=len(out) + 1))
        except (BadJob, ValueError) as error:
            fail(f"{path}:{number}: {error}", Exit.USAGE)
    return out


def _scene(jobs: Path, snapshot: Path | None, at: str | None) -> Scene:
    from console.commands.route import moment, read_world
    from router.policy.simulate import Scene

    now = moment(at)
    world = read_world(snapshot, now)
    work = _read_jobs(jobs, now)
    gone = {str(address).lower() for address in world["suppressed"]}
    suppressed = {j.id: "listed in the snapshot file" for j in work if j.recipient.lower() in gone}
    return Scene(
        work,
        world["snapshot"],
        world["fast"],
        now,
        suppressed,
        world["providers"],
        world["zones"],
        world["unreached"],
    )


def _recorded(count: int) -> list[Scene]:
    """The latest decisions, one a job, each in the world it was made in."""
    from console.opening import opened
    from console.output import track
    from console.recorded import Archive, Gone, snapshot_version
    from router.policy.simulate import scene_then

    scenes, gone = [], 0
    with opened() as (_, database):
        archive = Archive(database)
        found = track(archive.latest(count), "reading decisions", count)
        for body, job in found:
            try:
                scenes.append(scene_then(body, job, archive.snapshot(snapshot_version(body))))
            except Gone:
                gone += 1
    if gone:
        sys.stderr.write(f"{gone} decisions left out: their snapshots are no longer kept\n")
    if not scenes:
        fail("no decision is recorded yet; give jobs with --jobs FILE", Exit.NOT_FOUND)
    return scenes
