"""One suite over both databases: every test that asks for ``spool`` runs on SQLite and PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailweir.contracts.lifecycle import State, may_move
from mailweir.plumbing.database import Database, migrate
from mailweir.spool.store import Spool
from mailweir.spool.working import EXPIRED_REASON

DIALECTS = ("sqlite", "postgresql")

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)

# Every test of this suite writes down each change of state and each job that is nowhere or in two
# places at once; the fixture compares them with the table of moves when the test is over.
# A job is sending while its chunk is taken; what expires as it is taken was never sent.
_OLD = f"""CASE WHEN OLD.state = 'dispatched' AND coalesce(NEW.reason, '') <> '{EXPIRED_REASON}'
    AND EXISTS (SELECT 1 FROM chunks AS c WHERE c.id = OLD.chunk_id AND c.taken_real IS NOT NULL)
    THEN 'sending' ELSE OLD.state END"""
_TAKEN = """INSERT INTO watched SELECT 'dispatched', 'sending', 0 FROM jobs
    WHERE chunk_id = NEW.id AND state = 'dispatched'"""
_WATCH = {
    "sqlite": (
        "CREATE TABLE watched (old TEXT, new TEXT, bad INTEGER)",
        f"""CREATE TRIGGER watch AFTER UPDATE ON jobs BEGIN
        INSERT INTO watched SELECT {_OLD}, NEW.state, 1 <> (NEW.due_at IS NOT NULL)
        + (NEW.chunk_id IS NOT NULL) + (NEW.ended_at IS NOT NULL)
        WHERE OLD.state <> NEW.state OR OLD.due_at IS NOT NEW.due_at; END""",
        f"""CREATE TRIGGER watch_takes AFTER UPDATE OF taken_real ON chunks
        WHEN OLD.taken_real IS NULL AND NEW.taken_real IS NOT NULL BEGIN {_TAKEN}; END""",
    ),
    "postgresql": (
        "CREATE TABLE watched (old TEXT, new TEXT, bad INTEGER)",
        f"""CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF OLD.state <> NEW.state OR OLD.due_at IS DISTINCT FROM NEW.due_at THEN
        INSERT INTO watched VALUES ({_OLD}, NEW.state,
        (num_nonnulls(NEW.due_at, NEW.chunk_id, NEW.ended_at) <> 1)::int); END IF;
        RETURN NULL; END $$""",
        "CREATE TRIGGER watch AFTER UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION watch()",
        f"""CREATE FUNCTION watch_takes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF OLD.taken_real IS NULL AND NEW.taken_real IS NOT NULL THEN {_TAKEN}; END IF;
        RETURN NULL; END $$""",
        "CREATE TRIGGER watch_takes AFTER UPDATE ON chunks FOR EACH ROW EXECUTE FUNCTION watch_takes()",
    ),
}


def _watch(database: Database) -> None:
    with database.write() as conn:
        for statement in _WATCH[database.dialect_name]:
            conn.exec_driver_sql(statement)


def moves_seen(database: Database) -> set[tuple[str, str]]:
    """Every change of state this test's database has seen."""
    with database.read() as conn:
        rows = conn.exec_driver_sql("SELECT DISTINCT old, new FROM watched").all()
    return {(old, new) for old, new in rows}


def _judge(database: Database) -> None:
    illegal = [m for m in moves_seen(database) if not may_move(State(m[0]), State(m[1]))]
    assert not illegal, f"moves that are not in lifecycle.MOVES: {illegal}"
    with database.read() as conn:
        bad = conn.exec_driver_sql("SELECT DISTINCT old, new FROM watched WHERE bad = 1").all()
    assert not bad, f"not exactly one of due_at, chunk_id, ended_at after {bad}"


@pytest.fixture(scope="session")
def templates() -> dict[str, str]:
    """dialect -> an empty database at the newest revision, copied for each test."""
    return {}


@pytest.fixture(params=DIALECTS)
def database(
    request: pytest.FixtureRequest,
    templates: dict[str, str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Database]:
    """A new database with every table."""
    if request.param == "sqlite":
        if "sqlite" not in templates:
            path = tmp_path_factory.mktemp("template") / "spool.db"
            made = Database(f"sqlite:///{path}")
            migrate(made)
            _watch(made)
            made.close()
            templates["sqlite"] = str(path)
        shutil.copy(templates["sqlite"], tmp_path / "spool.db")
        url = f"sqlite:///{tmp_path / 'spool.db'}"
    else:
        new: Callable[..., str] = request.getfixturevalue("postgres_new")
        if "postgresql" not in templates:
            url = new()
            made = Database(url)
            migrate(made)
            _watch(made)
            made.close()
            templates["postgresql"] = url.partition("@/")[2].partition("?")[0]
        url = new(templates["postgresql"])
    opened = Database(url)
    drop = request.getfixturevalue("postgres_drop") if request.param == "postgresql" else None
    yield opened
    _judge(opened)
    opened.close()
    if drop is not None:
        drop(url)


@pytest.fixture
def spool(database: Database) -> Spool:
    """A spool over a new database."""
    return Spool(database)
