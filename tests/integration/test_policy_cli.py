"""``mailweir policy`` and ``mailweir route explain`` as an operator uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from console.cli import build
from mailweir.plumbing import policies
from mailweir.plumbing.database import Database, migrate
from mailweir.plumbing.settings import load

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "policy.yaml"
KEYS = {
    "outcome",
    "queue",
    "pool",
    "source",
    "rule",
    "reasons",
    "candidates",
    "limits",
    "precedence",
}


@pytest.fixture
def run():
    app, runner = build(), CliRunner()
    return lambda *args, **more: runner.invoke(app, [str(a) for a in args], **more)


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A migrated spool the commands find by MAILWEIR_DATA; no state server runs."""
    monkeypatch.setenv("MAILWEIR_DATA", str(tmp_path))
    database = Database(f"sqlite:///{load(tmp_path).data / 'spool.db'}")
    migrate(database)
    return database


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def job(path: Path, **fields: object) -> Path:
    body = {"from": "shop@example.com", "to": "ann@gmail.com", "bucket": "marketing", **fields}
    return write(path / "job.json", json.dumps(body))


def test_lint_says_file_line_key_and_what_is_right(run, tmp_path):
    bad = write(
        tmp_path / "bad.yaml", EXAMPLE.read_text().replace("failover", "x").replace("ehlo", "helo")
    )
    result = run("policy", "lint", bad)
    assert result.exit_code == 4
    assert (
        f"{bad}:4: error: sources.tx-1.helo: unknown key 'helo'; did you mean 'ehlo'?"
        in result.stdout
    )
    good = run("policy", "lint", EXAMPLE, "-o", "json")
    assert (good.exit_code, json.loads(good.stdout)) == (
        0,
        {"ok": True, "complete": True, "problems": []},
    )
    assert run("policy", "lint", tmp_path / "none.yaml").exit_code == 3
    assert run("policy", "lint", "-", input=EXAMPLE.read_text()).exit_code == 0


def test_explain_offline_has_exactly_the_keys(run, tmp_path):
    result = run("route", "explain", "--policy", EXAMPLE, "--job", job(tmp_path), "-o", "json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert set(answer) == KEYS
    assert (answer["outcome"], answer["pool"], answer["rule"]) == ("routed", "bulk", "marketing")
    assert answer["precedence"] == "rule"
    assert {c["source"] for c in answer["candidates"]} == {"news-1", "news-2", "news-3"}
    for candidate in answer["candidates"]:
        assert set(candidate) == {"pool", "source", "weight", "score", "rejected_because"}
    chosen = [c for c in answer["candidates"] if c["rejected_because"] is None]
    assert [c["source"] for c in chosen] == [answer["source"]]
    assert {"layer": "rule marketing, a day", "limit": "200000"} in answer["limits"]


def test_explain_with_a_snapshot_and_a_time(run, tmp_path):
    snapshot = write(
        tmp_path / "snapshot.yaml",
        """
paths:
  news-1|gmail|marketing: {score: 0.3}
  news-2|gmail|marketing: {score: 0.6, state: slowed}
paused: {"source:news-3": 1.0e12}
""",
    )
    args = ("--policy", EXAMPLE, "--job", job(tmp_path), "--snapshot", snapshot, "-o", "json")
    answer = json.loads(run("route", "explain", *args).stdout)
    assert (answer["queue"], answer["source"]) == ("marketing.throttled", "news-2")
    why = {c["source"]: c["rejected_because"] for c in answer["candidates"]}
    assert why["news-1"] == "score below 0.4"
    assert why["news-3"] == "paused by an operator"
    night = job(tmp_path, bucket="bulk", tags=["low-prio"])
    args = ("--policy", EXAMPLE, "--job", night, "-o", "json", "--at")
    held = json.loads(run("route", "explain", *args, "2026-07-30T12:00:00+02:00").stdout)
    assert held["outcome"] == "held"
    assert held["reasons"][1].startswith("looked at again at 2026-07-30T20:")
    assert json.loads(run("route", "explain", *args, "2026-07-30T23:00:00+02:00").stdout)["source"]


def test_explain_text_and_bad_input(run, tmp_path):
    text = run("route", "explain", "--policy", EXAMPLE, "--job", job(tmp_path), "-o", "text")
    assert "ann@gmail.com: routed marketing by bulk/" in text.stdout
    for body in ({"to": "not an address"}, {"bucket": "nightly"}, {"colour": "red"}):
        assert (
            run("route", "explain", "--policy", EXAMPLE, "--job", job(tmp_path, **body)).exit_code
            == 2
        )
    assert run("route", "explain", "--policy", EXAMPLE, "--job", tmp_path / "none").exit_code == 3


def test_apply_history_show_diff_rollback(run, spool, tmp_path):
    assert run("policy", "show").exit_code == 3
    one = run("policy", "apply", EXAMPLE, "-m", "first", "--author", "ann", "--approver", "bob")
    assert one.exit_code == 0, one.output
    assert "version 1: in force" in one.stdout
    two = write(tmp_path / "two.yaml", EXAMPLE.read_text().replace("200000", "100000"))
    changes = json.loads(run("policy", "diff", two, "-o", "json").stdout)
    assert changes == [
        {"path": "rules.marketing.action.daily_limit", "before": 200000, "after": 100000}
    ]
    assert run("policy", "apply", two, "-m", "half", "--author", "ann").exit_code == 0
    broken = write(tmp_path / "three.yaml", two.read_text().replace("{pool: bulk}", "{pool: bukl}"))
    refused = run("policy", "apply", broken, "-m", "oops")
    assert refused.exit_code == 4
    assert "did you mean 'bulk'?" in refused.output
    assert policies.current(spool).version == 2  # the running one stays
    assert run("policy", "show").stdout == two.read_text()
    back = run("policy", "rollback", "-m", "bounces", "-o", "json")
    assert json.loads(back.stdout) == {"version": 3}
    assert run("policy", "show").stdout == EXAMPLE.read_text()
    versions = json.loads(run("policy", "history", "-o", "json").stdout)
    assert [(v["version"], v["reason"]) for v in versions] == [
        (3, "rollback to version 1: bounces"),
        (2, "half"),
        (1, "first"),
    ]
    assert versions[2]["approver"] == "bob"
    live = json.loads(run("route", "explain", "--job", job(tmp_path), "-o", "json").stdout)
    assert live["rule"] == "marketing"


def test_simulate_prints_volumes_limits_and_time(run, tmp_path):
    lines = [
        {"from": "n@example.com", "to": f"u{i}@gmail.com", "bucket": "marketing"}
        for i in range(2000)
    ] + [{"from": "n@example.com", "to": "u@gmail.com"}] * 10
    jobs = write(tmp_path / "jobs.jsonl", "\n".join(map(json.dumps, lines)))
    other = write(
        tmp_path / "other.yaml", EXAMPLE.read_text().replace("gmail: 500/min", "gmail: 100/min")
    )
    result = run("policy", "simulate", other, "--jobs", jobs, "--against", EXAMPLE, "-o", "json")
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    candidate = body["candidate"]
    assert candidate["pools"] == {"bulk": 2000, "high-trust": 10}
    assert candidate["seconds"] == pytest.approx(1200)  # 2,000 at 100 a minute
    assert candidate["slowest"] == "pool bulk at gmail 100/min"
    assert candidate["limit_hits"]["pool bulk at gmail 100/min"] == 1900
    assert body["change"] == {"moved": 0, "pools": {}, "sources": {}, "providers": {}}
    assert "the backlog needs 1200 s" in run("policy", "simulate", other, "--jobs", jobs).stdout


def test_schema_is_json(run):
    assert json.loads(run("policy", "schema").stdout)["title"] == "Mailweir policy"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"pahts": {}}, "unknown key 'pahts'; did you mean 'paths'?"),
        ({"paths": {"tx-1|gmail": {}}}, "source|provider|bucket"),
        ({"paths": {"tx-1|gmail|transactonal": {}}}, "did you mean 'transactional'?"),
        ({"paths": {"tx-1|gmail|bulk": {"scoer": 0.2}}}, "did you mean 'score'?"),
        ({"paths": {"tx-1|gmail|bulk": {"score": 2}}}, "between 0 and 1"),
        ({"paths": {"tx-1|gmail|bulk": {"state": "odd"}}}, "none of cold, warming"),
        ({"paths": {"tx-1|gmail|bulk": {"cap_day": "many"}}}, "paths.tx-1|gmail|bulk"),
        ({"fast": {"tx-1|gmail": {"breaker": "ajar"}}}, "none of closed, open, half_open"),
        ({"paused": {"pool:bulk": "soon"}}, "until, Unix seconds"),
        ([], "a snapshot is a mapping"),
    ],
)
def test_a_snapshot_file_is_read_strictly(run, tmp_path, body, told):
    """What is misspelt would be a healthy world, and a wrong answer."""
    snap = write(tmp_path / "snap.json", json.dumps(body))
    result = run(
        "route", "explain", "--policy", EXAMPLE, "--job", job(tmp_path), "--snapshot", snap
    )
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert str(snap) in result.stderr


def test_a_snapshot_file_says_what_no_worker_reaches(run, tmp_path):
    snap = write(
        tmp_path / "s.json", json.dumps({"unreached": {"transactional": ["tx-1", "tx-2"]}})
    )
    work = job(tmp_path, bucket="transactional")
    result = run(
        "route", "explain", "--policy", EXAMPLE, "--job", work, "--snapshot", snap, "-o", "json"
    )
    body = json.loads(result.stdout)
    assert body["source"] == "tx-relay"
    lost = {c["source"]: c["rejected_because"] for c in body["candidates"]}
    assert "no live worker" in lost["tx-1"]
    assert "no live worker" in lost["tx-2"]


def test_apply_wants_a_reason_and_one_way_to_try_out(run, spool, tmp_path):
    for extra, told in (
        (("-m", "  "), "say why"),
        (("-m", "x", "--canary", "10", "--shadow"), "not both"),
    ):
        result = run("policy", "apply", EXAMPLE, *extra)
        assert result.exit_code == 2
        assert told in result.stderr
    assert policies.history(spool) == []


def test_lint_says_when_it_could_not_look_further(run, tmp_path):
    typo = write(tmp_path / "typo.yaml", EXAMPLE.read_text().replace("quota", "qouta"))
    told = run("policy", "lint", typo).stdout
    assert "1 error, 0 warnings" in told
    assert "checked once these are mended" in told
    assert json.loads(run("policy", "lint", typo, "-o", "json").stdout)["complete"] is False
    name = write(tmp_path / "name.yaml", EXAMPLE.read_text().replace("pool: bulk", "pool: blk"))
    told = run("policy", "lint", name).stdout
    assert "mended" not in told
    assert "did you mean 'bulk'?" in told


def test_diff_of_the_same_says_so(run):
    assert "no difference" in run("policy", "diff", EXAMPLE, EXAMPLE).stdout
