"""``mailweir route explain``: which rule, pool, source and queue a job would get, and why not the others."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from console.output import Exit, Format, emit, fail, print_rows

if TYPE_CHECKING:
    from mailweir.contracts.job import Job
    from mailweir.contracts.policy import Policy


class Printed(StrEnum):
    """How explain prints: for people, or for programs."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="Ask the router without sending anything.", no_args_is_help=True)
    group.callback()(_group)
    group.command("explain")(explain)
    app.add_typer(group, name="route")


def _group() -> None:
    """Ask the router without sending anything."""


def explain(
    job: Annotated[
        Path | None,
        typer.Option("--job", help="JSON or YAML as the HTTP door takes it; '-': stdin."),
    ] = None,
    job_id: Annotated[
        str | None,
        typer.Option("--id", help="Else: an accepted job, as it was decided, with all of then."),
    ] = None,
    decision: Annotated[
        int | None,
        typer.Option("--decision", min=1, help="Of --id: the first is 1; default: the last."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Policy file; default: the policy in force.")
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option("--snapshot", help="Routing snapshot (JSON or YAML); default: all healthy."),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="Time of the decision, ISO 8601; default: now.")
    ] = None,
    output: Annotated[
        Printed, typer.Option("-o", "--output", help="How to print: text, json or yaml.")
    ] = Printed.TEXT,
) -> None:
    """Explain the route of a job. With --policy it needs no running stack.

    With --id a recorded decision is made again, from the policy and the snapshot of then; exit 4 when
    something else comes out.

    The snapshot file may have ``paths`` ("source|provider|bucket": score, state, cap_day ...), ``paused``
    ("source:x": until), ``fast`` ("source|provider": rate, breaker, open_until ...), ``zones`` (domain ->
    geo zone), ``providers`` (domain -> provider), ``suppressed`` (list of addresses), ``unreached``
    (queue -> sources none of its live workers reaches).
    """
    from router.policy.compiled import CompiledPolicy
    from router.policy.context import Context
    from router.policy.explain import explain as run
    from router.policy.jobs import BadJob, jobs_of

    if (job is None) == (job_id is None):
        fail("give a job by --job FILE, or an accepted one by --id ID", Exit.USAGE)
    if job is None:
        if policy or snapshot or at:
            fail("--id takes policy, snapshot and time from the record", Exit.USAGE)
        _explain_recorded(job_id or "", decision, output)
        return
    now = moment(at)
    chosen = read_policy(policy) if policy is not None else _in_force()
    world = read_world(snapshot, now)
    try:
        jobs = jobs_of(read_values(job), now)
    except BadJob as error:
        fail(f"{job}: {error}", Exit.USAGE)
    gone = {str(address).lower() for address in world["suppressed"]}
    context = Context(
        policy=CompiledPolicy(chosen),
        snapshot=world["snapshot"],
        fast=world["fast"],
        now=now,
        suppressed={
            j.id: "listed in the snapshot file" for j in jobs if j.recipient.lower() in gone
        },
        zones=world["zones"],
        providers=world["providers"],
        unreached=world["unreached"],
    )
    answers = [run(j, context) for j in jobs]
    body = answers[0] if len(answers) == 1 else answers
    if output is Printed.TEXT:
        _show(jobs, answers)
    else:
        emit(body, Format(output.value))


def _explain_recorded(job_id: str, number: int | None, output: Printed) -> None:
    from console.opening import opened
    from console.recorded import Archive, Gone, queue_region, snapshot_version
    from mailweir.contracts.ids import parse_id
    from router.policy.replay import replay

    try:
        wanted = parse_id(job_id)
    except ValueError as error:
        fail(f"--id: {error}", Exit.USAGE)
    with opened() as (_, database):
        archive = Archive(database)
        try:
            found = archive.of_job(wanted, number)
            policy = archive.policy(int(found.body["policy"]), queue_region(found.body))
            snapshot = archive.snapshot(snapshot_version(found.body))
        except Gone as error:
            fail(f"{job_id}: {error}", Exit.NOT_FOUND)
    made = replay(found.body, found.job, policy, snapshot)
    answer = {**made.explanation, "recorded": found.body, "expands_to_itself": made.same}
    if output is Printed.TEXT:
        _show([found.job], [answer])
    else:
        emit(answer, Format(output.value))
    if not made.same:
        fail("the record does not follow from its inputs; was the recipient erased?", Exit.REFUSED)


def _show(jobs: list[Job], answers: list[dict[str, Any]]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        way = f"{answer['queue']} by {answer['pool']}/{answer['source']}" if answer["pool"] else ""
        sys.stdout.write(f"{job.recipient}: {answer['outcome']} {way}".rstrip() + "\n")
        sys.stdout.write(
            f"  rule: {answer['rule'] or '-'}; decided by: {answer['precedence'] or '-'}\n"
        )
        for reason in answer["reasons"]:
            sys.stdout.write(f"  {reason}\n")
        if answer["candidates"]:
            print_rows(
                ("pool", "source", "weight", "score", "why not"),
                [
                    (
                        c["pool"],
                        c["source"],
                        c["weight"],
                        c["score"],
                        c["rejected_because"] or "chosen",
                    )
                    for c in answer["candidates"]
                ],
            )
        if answer["limits"]:
            print_rows(("limit", ""), [(x["layer"], x["limit"]) for x in answer["limits"]])


def moment(at: str | None) -> float:
    """Unix seconds of an ISO time, or now (policy time of this installation)."""
    from datetime import UTC, datetime

    from console.opening import clock_of
    from mailweir.plumbing.settings import SettingsError, load

    if at is None:
        try:
            return clock_of(load()).now()
        except SettingsError as error:
            fail(str(error), Exit.USAGE)
    try:
        when = datetime.fromisoformat(at)
    except ValueError:
        fail(f"--at {at!r} is not a time; write 2026-08-01T09:00:00Z", Exit.USAGE)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def read_bytes(path: Path) -> bytes:
    """The bytes of a file or of standard input; leaves with exit 3 where there is none."""
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}", Exit.NOT_FOUND)


def read_policy(path: Path) -> Policy:
    """A policy file without errors; leaves with exit 4 and every error otherwise."""
    from router.policy.loader import load

    loaded = load(read_bytes(path), file=str(path))
    if not loaded.ok:
        fail("\n".join(str(p) for p in loaded.errors), Exit.REFUSED)
    return loaded.policy


def read_values(path: Path) -> Any:
    """A JSON or YAML file as plain values. JSON first: YAML 1.1 takes its 1e12 for text."""
    import json

    import yaml

    data = read_bytes(path)
    try:
        return json.loads(data)
    except ValueError:
        pass  # then it is YAML, or said to be neither below
    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        fail(f"{path} is neither JSON nor YAML: {error}", Exit.USAGE)


def read_world(path: Path | None, now: float) -> dict[str, Any]:
    """Snapshot, fast state and the other facts of a snapshot file, or a world where all is well."""
    from console.world import BadWorld, read

    try:
        return read({} if path is None else read_values(path), now)
    except BadWorld as error:
        fail(f"{path}: {error}", Exit.USAGE)


def _in_force() -> Policy:
    from console.opening import opened
    from mailweir.plumbing.policies import NoPolicy, current

    with opened() as (_, database):
        try:
            return current(database)
        except NoPolicy as error:
            fail(str(error), Exit.NOT_FOUND)
