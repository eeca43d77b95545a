"""Decisions of a real router, made again from what is kept: policy, snapshot, record."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import redis
from sqlalchemy import delete, update
from typer.testing import CliRunner

from console.cli import build
from mailweir.contracts.ids import format_id
from mailweir.contracts.job import Bucket, JobMeta
from mailweir.contracts.snapshot import PathState, Snapshot
from mailweir.plumbing import keys
from mailweir.spool.schema import decisions, snapshots
from reputation.publisher import store
from tests.integration.router_rig import Rig

POLICY = """
sources:
  a-1: {buckets: [bulk]}
  a-2: {buckets: [bulk]}
  b-1: {buckets: [bulk]}
pools:
  a: {sources: [a-1, a-2], failover: [b]}
  b: {sources: [b-1], sticky: false}
rules:
  - name: stop
    match: {tag: stop}
    action: {refuse: not today}
  - name: split
    action: {pool: {a: 70, b: 30}}
buckets:
  bulk: {recipient_limit: none}
providers:
  gmail: {rate: 600/min}
"""
CANDIDATE = POLICY.replace("{a: 70, b: 30}", "{a: 10, b: 90}")
JOBS = 40


def publish(rig: Rig, version: int, paths: dict[str, PathState]) -> None:
    snapshot = Snapshot(version, rig.clock.now(), 1, paths)
    with rig.spool.database.write() as conn:
        store(conn, snapshot)
    rig.client.set(keys.SNAPSHOT, msgspec.json.encode(snapshot))
    rig.client.set(keys.SNAPSHOT_VERSION, str(version))


@pytest.fixture
def past(tmp_path: Path, redis_url: str, redis_clean: redis.Redis, monkeypatch):
    """Jobs decided while a-1 was suspended and a-2's breaker was open; today all is well."""
    rig = Rig.build(tmp_path, redis_url, POLICY)
    publish(rig, 1, {"a-1|gmail|bulk": PathState(state="suspended", score=0.5)})
    later = rig.clock.now() + 600
    redis_clean.sadd(keys.PATH_INDEX, "a-2|gmail", "b-1|gmail")
    redis_clean.hset(keys.path_state("a-2", "gmail"), mapping={"phase": "open", "until": later})
    redis_clean.hset(keys.path_state("b-1", "gmail"), mapping={"phase": "closed"})
    rig.ids = rig.accept([f"u{i}@gmail.com" for i in range(JOBS)])
    rig.refused = rig.accept(["x@gmail.com"], meta=JobMeta(tags=("stop",)))[0]
    with rig.router(Bucket.BULK) as loop:
        rig.drain(loop, JOBS)
    publish(rig, 2, {})
    rig.apply(CANDIDATE)  # today's policy is another, too
    monkeypatch.setenv("MAILWEIR_DATA", str(tmp_path))
    monkeypatch.setenv("MAILWEIR_REDIS__URL", redis_url)
    return rig


@pytest.fixture
def run():
    app, runner = build(), CliRunner()
    return lambda *args: runner.invoke(app, [str(a) for a in args])


def test_a_job_is_explained_as_it_was_decided(past, run) -> None:
    for job_id in past.ids[:6]:
        answer = run("route", "explain", "--id", format_id(job_id), "-o", "json")
        assert answer.exit_code == 0, answer.output
        body = json.loads(answer.stdout)
        assert body["expands_to_itself"]
        assert (body["pool"], body["source"]) == ("b", "b-1")
        assert body["recorded"]["snapshot"].startswith("1.")
        why = {c["source"]: c["rejected_because"] for c in body["candidates"]}
        assert why["b-1"] is None
        if "failover to pool b" in body["reasons"]:
            assert (why["a-1"], why["a-2"]) == ("suspended", "breaker open")
        else:  # b was drawn: a was not asked then; its snapshot still tells of a-1
            assert why["a-1"] == "suspended"
    text = run("route", "explain", "--id", format_id(past.refused))
    assert text.exit_code == 0
    assert "refused" in text.stdout
    assert "not today" in text.stdout


def test_what_is_not_kept_or_was_altered_is_said(past, run) -> None:
    job = format_id(past.ids[0])
    assert run("route", "explain", "--id", job, "--decision", "2").exit_code == 3
    assert run("route", "explain", "--id", "nothing").exit_code == 2
    assert run("route", "explain").exit_code == 2
    with past.spool.database.write() as conn:
        old = past.decisions()[0]
        altered = {**json.loads(old.body), "rule": "stop"}
        conn.execute(
            update(decisions).where(decisions.c.id == old.id).values(body=json.dumps(altered))
        )
        conn.execute(delete(snapshots).where(snapshots.c.version == 2))
    altered_job = format_id(old.job_id)
    assert run("route", "explain", "--id", altered_job).exit_code == 4
    with past.spool.database.write() as conn:
        conn.execute(delete(snapshots))
    gone = run("route", "explain", "--id", format_id(past.ids[1]))
    assert gone.exit_code == 3
    assert "snapshot 1" in gone.output


def test_simulate_replays_with_the_snapshot_of_the_time(past, run, tmp_path: Path) -> None:
    candidate = tmp_path / "candidate.yaml"
    candidate.write_text(POLICY)
    answer = run("policy", "simulate", candidate, "-o", "json")
    assert answer.exit_code == 0, answer.output
    result = json.loads(answer.stdout)["candidate"]
    assert result["jobs"] == JOBS + 1
    assert result["pools"] == {"b": JOBS}  # a could not: suspended then, its breaker open
    assert result["sources"] == {"b-1": JOBS}
    assert result["providers"] == {"gmail": JOBS}
    assert result["refused"] == {"policy": 1}
    assert result["seconds"] == pytest.approx(JOBS / 10)
    assert "b-1 at gmail" in result["slowest"]

    # the same jobs by hand, in today's world where all is well: the weights decide
    lines = [
        json.dumps({"from": "a@news.example", "to": f"u{i}@gmail.com", "bucket": "bulk"})
        for i in range(100)
    ]
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("\n".join(lines))
    answer = run("policy", "simulate", candidate, "--jobs", jobs, "-o", "json")
    result = json.loads(answer.stdout)["candidate"]
    assert Counter(result["pools"]) == Counter(a=70, b=30)
    assert run("policy", "simulate", candidate, "--at", "2026-01-01T00:00:00Z").exit_code == 2
