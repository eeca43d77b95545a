"""Statements find their rows by an index: on Python's SQLite and on the newest one, whatever statistics say.

Statistics are of the moment they were made: of empty tables newer SQLites note that each partial index holds
nothing. With these they read all waiting jobs for each batch of them that was dispatched, rather than look them
up by id. On Debian 13 every other test passed, and mail went out at two fifths of the rate.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from mailweir.plumbing.database import Database, migrate
from mailweir.spool import statements
from mailweir.spool.base import _cursor
from mailweir.spool.statements import Many
from tests.contract.spool.conftest import only_postgresql

Plan = Callable[[str], str]

READS_ALL = {
    "COUNTS",  # counts what waits: an operator's look
    "QUEUES_UNTAKEN",  # of the open chunks, by their index
    "CANCELLABLE_BY tenant",  # an operator's, once
    "SEARCH_BY tenant",  # the newest first, with a limit
    "SEARCH_ALL",
}
_BY_ID = re.compile(r"WHERE (?:j\.)?id (?:=|IN)")
_FOUND_BY_ID = re.compile(r"SEARCH \w+ USING [^']*rowid=\?")


def _texts() -> Iterator[tuple[str, str]]:
    for name, value in vars(statements).items():
        if not name.isupper() or name.startswith("_"):
            continue
        if isinstance(value, Many):
            yield name, value.lite(1)
            yield f"{name} of 32", value.lite(32)
        elif isinstance(value, tuple):
            yield name, value[0]
        elif isinstance(value, dict):
            for key, statement in value.items():
                yield f"{name} {key}", statement[0]


TEXTS = dict(_texts())


def _adding(first: int, count: int, *, waiting: bool) -> str:
    """A statement of both databases that adds jobs: they wait, or ended."""
    due, ended = ("1.0", "NULL") if waiting else ("NULL", "1.0")
    return f"""
        WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {first + count - 1})
        INSERT INTO jobs (id, message_id, content_id, due_at, ended_at, tenant, bucket, priority, recipient,
        recipient_key, mail_from, lane, flow, meta, state, accepted_at, attempts, crashes, marks)
        SELECT i, i, i, {due}, {ended}, 't', 'bulk', 5, 'r', 'r', 'f', 'l', 'l|t|5', '{{}}', 'sent', 0, 0, 0, ''
        FROM n"""


@pytest.fixture(scope="module", params=["none", "of empty tables", "of a quiet hour"])
def spool_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "spool.db"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    database.close()
    conn = apsw.Connection(str(path))
    if request.param == "of a quiet hour":
        conn.execute(_adding(1, 2000, waiting=False))
        conn.execute(_adding(2001, 3, waiting=True))
    if request.param != "none":
        conn.execute("ANALYZE")
    conn.close()
    return path


@pytest.fixture(scope="module", params=["of Python", "newest"])
def plan(request: pytest.FixtureRequest, spool_file: Path) -> Iterator[Plan]:
    ours = sqlite3.connect(spool_file)
    newest = apsw.Connection(str(spool_file))

    def explained(text: str) -> str:
        question = f"EXPLAIN QUERY PLAN {text}"
        marks = [int(n) for n in re.findall(r"\?(\d+)", text)]
        nothing = [None] * (max(marks) if marks else text.count("?"))
        asked = newest if request.param == "newest" else ours
        return "\n".join(str(row[3]) for row in asked.execute(question, nothing))

    yield explained
    ours.close()
    newest.close()


def test_every_statement_is_looked_at() -> None:
    assert len(TEXTS) > 60
    assert {"DISPATCH of 32", "OUTCOME", "CLAIM", "SEARCH_BY campaign"} <= TEXTS.keys()


@pytest.mark.parametrize("name", TEXTS)
def test_no_table_is_read_from_end_to_end(plan: Plan, name: str) -> None:
    read = [
        line
        for line in plan(TEXTS[name]).splitlines()
        if re.match(
            r"SCAN (jobs|j|chunks|c|contents|messages|m|attempts|a|decisions|feedback)\b", line
        )
    ]
    assert not read or name in READS_ALL, read


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if _BY_ID.search(text)])
def test_rows_told_by_their_id_are_looked_up_by_it(plan: Plan, name: str) -> None:
    assert _FOUND_BY_ID.search(plan(TEXTS[name])), plan(TEXTS[name])


MOVED_TOGETHER = 400  # jobs
_OF_TYPE = {"bigint": 1, "int": 1, "float8": 1.0, "text": "x"}


@only_postgresql
@pytest.mark.parametrize("name", ["DISPATCH", "MOVE", "OUTCOME"])
def test_postgresql_looks_up_by_id_what_statistics_call_few(database: Database, name: str) -> None:
    with database.write() as conn:
        conn.exec_driver_sql("ALTER TABLE jobs SET (autovacuum_enabled = off)")
        conn.exec_driver_sql(_adding(1, 20_000, waiting=False))
        conn.exec_driver_sql(_adding(20_001, 3, waiting=True))
    with database.write() as conn:
        conn.exec_driver_sql("ANALYZE jobs")
        conn.exec_driver_sql(_adding(30_001, 30_000, waiting=True))
    text = getattr(statements, name).post
    values = [[_OF_TYPE[kind]] * MOVED_TOGETHER for kind in re.findall(r"%b::(\w+)\[\]", text)]
    with database.write() as conn:
        cursor = _cursor(conn)
        cursor.execute(f"EXPLAIN {text}", values)
        told = "\n".join(str(row[0]) for row in cursor.fetchall())
    assert "pk_jobs" in told, told
    assert "jobs_waiting" not in told, told
    assert "jobs_chunk" not in told, told
