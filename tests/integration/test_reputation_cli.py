"""``mailweir suppress``, ``warmup`` and ``reputation`` as an operator uses them: JSON and exit codes."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from console.cli import build
from mailweir.contracts.policy import Policy, Source
from mailweir.contracts.snapshot import PathState, Snapshot
from mailweir.plumbing.database import Database, migrate
from mailweir.plumbing.settings import load
from reputation import history, publisher
from reputation.policy.book import Book, PathKey, Tried
from reputation.policy.states import State

OK, FAILED, USAGE, NOT_FOUND, REFUSED = 0, 1, 2, 3, 4


class Run:
    """Runs a command in this process."""

    def __init__(self) -> None:
        self._app, self._runner = build(), CliRunner()

    def __call__(self, *words: object) -> Any:
        """What it printed and its exit code."""
        return self._runner.invoke(self._app, [str(word) for word in words])


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A migrated spool; no state server runs."""
    monkeypatch.setenv("MAILWEIR_DATA", str(tmp_path))
    database = Database(f"sqlite:///{load(tmp_path).data / 'spool.db'}")
    migrate(database)
    return database


def said(result: Any, code: int) -> Any:
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_suppress_by_hand(run: Run, spool: Database, tmp_path: Path) -> None:
    who = "Jane@Example.com"
    assert said(run("suppress", "check", who, "-o", "json"), OK)["suppressed"] is False
    said(run("suppress", "add", who, "--why", "asked by phone", "-o", "json"), OK)
    answer = said(run("suppress", "check", "jane@example.com", "-o", "json"), REFUSED)
    assert (answer["suppressed"], answer["reason"]) == (True, "manual")
    listed = said(run("suppress", "list", "-o", "json"), OK)
    assert "jane@example.com" in json.dumps(listed)
    with spool.read() as conn:
        audit = conn.exec_driver_sql("SELECT action, reason FROM audit").all()
    assert [tuple(row) for row in audit] == [("suppress.add", "asked by phone")]

    rows = tmp_path / "in.csv"
    rows.write_text("address,reason\na@example.com,hard_bounce\nno address,x\nb@example.com,\n")
    result = run("suppress", "import", rows, "-o", "json")
    assert result.exit_code == FAILED
    assert "in.csv:3" in result.output
    assert run("suppress", "export", tmp_path / "out.csv").exit_code == OK
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4

    said(run("suppress", "remove", who, "-o", "json"), OK)
    assert said(run("suppress", "check", who, "-o", "json"), OK)["suppressed"] is False
    assert run("suppress", "remove", who, "-o", "json").exit_code == NOT_FOUND


@pytest.mark.parametrize(
    "words",
    [
        ("suppress", "add", "no address"),
        ("suppress", "check", "no address"),
        ("suppress", "pending", "perhaps"),
        ("warmup", "plan", "--provider", "gmail", "--growth", "0.9"),
        ("warmup", "plan", "--provider", "gmail", "--start", "0"),
        ("reputation", "simulate", "README.md"),
    ],
)
def test_nonsense_is_a_usage_error(run: Run, spool: Database, words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.exit_code == USAGE, result.output
    assert "Traceback" not in result.output


def test_warmup_plan_needs_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILWEIR_DATA", str(tmp_path / "nothing"))
    plan = said(run("warmup", "plan", "--provider", "gmail", "-o", "json"), OK)
    caps = [row["cap"] for row in plan["curve"]]
    assert caps[:3] == [50, 60, 72]
    assert next(row["day"] for row in plan["curve"] if row["cap"] >= 20_000) in range(29, 36)
    assert all(b - a <= 5000 for a, b in itertools.pairwise(caps))
    assert not (tmp_path / "nothing").exists()


def test_reputation_shows_the_snapshot_in_force(run: Run, spool: Database) -> None:
    assert run("reputation", "show", "-o", "json").exit_code == NOT_FOUND
    state = PathState(state="suspended", weight=0.0, reasons=("soft bounces 4 %",))
    with spool.write() as conn:
        publisher.store(conn, Snapshot(1, 5.0, 1, {"s|gmail|bulk": state, "t|gmail|bulk": state}))
    answer = said(run("reputation", "show", "--source", "s", "-o", "json"), OK)
    (path,) = answer["paths"]
    assert (path["source"], path["state"]) == ("s", "suspended")
    assert path["reasons"] == ["soft bounces 4 %"]
    states = json.dumps(said(run("reputation", "states", "-o", "json"), OK))
    assert all(str(state) in states for state in State)
    said(run("warmup", "status", "-o", "json"), OK)


def test_seeds_are_kept(run: Run, spool: Database, tmp_path: Path) -> None:
    results = tmp_path / "seeds.csv"
    results.write_text("source,provider,folder\ns,gmail,inbox\ns,gmail,spam\n")
    answer = run("reputation", "seeds", results, "-o", "json")
    assert answer.exit_code == OK, answer.output
    assert "0.5" in answer.stdout
    with spool.write() as conn:
        paths = {"s|gmail|bulk": PathState(), "s|yahoo|bulk": PathState()}
        publisher.store(conn, Snapshot(1, 5.0, 1, paths))
    shown = said(run("reputation", "show", "-o", "json"), OK)["paths"]
    assert [(p["provider"], p["inbox"]) for p in shown] == [("gmail", 0.5), ("yahoo", None)]
    assert shown[0]["inbox_tested_at"] == pytest.approx(time.time(), abs=60)


def test_warmup_status_tells_where_a_source_stands(run: Run, spool: Database) -> None:
    book = Book(Policy(sources={"new": Source("new", warm=False)}))
    now = time.time()
    key = PathKey("new", "gmail", "marketing")
    for _ in range(30):
        book.tried(Tried(now, key, 1, "sent", None, None, 0.1))
    with spool.write() as conn:
        history.save(conn, book, now)
    rows = said(run("warmup", "status", "-o", "json"), OK)
    (row,) = [row for row in rows if (row["source"], row["provider"]) == ("new", "gmail")]
    assert (row["cap_day"], row["used_today"], row["earned_days"]) == (50, 30, 1)
