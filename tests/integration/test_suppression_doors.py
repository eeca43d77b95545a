"""Unsubscribe links and CSV files, with a real Redis."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import select
from starlette.applications import Starlette
from starlette.testclient import TestClient

from mailweir.plumbing.database import Database
from mailweir.plumbing.redis import begin_epoch
from mailweir.spool.schema import audit, feedback, jobs
from suppression import store
from suppression.entries import BadEntry, Entry
from suppression.guard import Ask, Guard
from suppression.projection import Projection
from suppression.transfer import (
    add_by_hand,
    default_entry,
    export_csv,
    import_csv,
    remove_by_hand,
)
from suppression.unsubscribe import job_of_token, make_token, routes
from tests.contract.suppression.rows import SECRET, job_row, sqlite, write

ONE_CLICK = {"List-Unsubscribe": "One-Click"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    yield from sqlite(tmp_path)


@pytest.fixture
def client(redis_clean: redis.Redis, database: Database) -> redis.Redis:
    begin_epoch(redis_clean, "e1")
    Projection(redis_clean, database, SECRET).rebuild()
    return redis_clean


@pytest.fixture
def web(client: redis.Redis, database: Database) -> TestClient:
    return TestClient(Starlette(routes=routes(client, database, SECRET)))


def token(database: Database, **fields: object) -> tuple[str, dict[str, object]]:
    job = job_row("Reader@Example.com", **fields)
    write(database, jobs, [job])
    made = make_token(SECRET, job["id"], job["tenant"], job["bucket"], job["recipient_key"])
    return made, job


def entries(database: Database) -> list[Entry]:
    with database.read() as conn:
        return store.listing(conn)


def test_get_shows_and_changes_nothing_post_unsubscribes_once(
    web: TestClient, client: redis.Redis, database: Database
) -> None:
    made, _ = token(database)
    for _ in range(1000):
        answer = web.get(f"/u/{made}")
    assert answer.status_code == 200
    assert 'method="post"' in answer.text
    assert entries(database) == []
    for _ in range(2):
        answer = web.post(f"/u/{made}", data=ONE_CLICK, follow_redirects=False)
        assert answer.status_code == 200
        assert "set-cookie" not in answer.headers
    assert {(e.key, e.scope, e.tenant, e.bucket, e.reason) for e in entries(database)} == {
        ("reader@example.com", "bucket", "acme", bucket, "unsubscribe")
        for bucket in ("marketing", "bulk")
    }
    asks = [Ask("reader@example.com", "acme", b) for b in ("marketing", "bulk", "transactional")]
    asks.append(Ask("reader@example.com", "other", "marketing"))
    answers = Guard(client, database, SECRET).check(asks)
    assert answers == ["unsubscribe", "unsubscribe", None, None]


def test_a_click_is_feedback_once(web: TestClient, database: Database) -> None:
    made, job = token(database)
    for _ in range(2):
        assert web.post(f"/u/{made}", data=ONE_CLICK).status_code == 200
    with database.read() as conn:
        (row,) = conn.execute(select(feedback)).all()
        marks = conn.execute(select(jobs.c.marks).where(jobs.c.id == job["id"])).scalar_one()
    assert (row.job_id, row.type, row.provider) == (job["id"], "unsubscribed", "one-click")
    assert (row.tenant, row.recipient_key) == ("acme", "reader@example.com")
    assert marks == "unsubscribed"


def test_post_without_the_words_of_rfc_8058_changes_nothing(
    web: TestClient, database: Database
) -> None:
    made, _ = token(database)
    assert web.post(f"/u/{made}").status_code == 400
    assert web.post(f"/u/{made}", data={"x": "y" * 5000}).status_code == 413
    assert entries(database) == []


def test_forged_tokens_change_nothing(web: TestClient, database: Database) -> None:
    made, job = token(database)
    other, _ = token(database, tenant="other")
    raw = list(made)
    forged = []
    for place in range(len(raw) - 1):
        flipped = raw.copy()
        flipped[place] = "A" if flipped[place] != "A" else "B"
        forged.append("".join(flipped))
    head, tail = 12, made[12:]
    forged.append(other[:head] + tail)  # another job with this one's proof
    elsewhere = make_token(SECRET, int(str(job["id"])), "other", "marketing", "reader@example.com")
    list_swapped = make_token(SECRET, int(str(job["id"])), "acme", "bulk", "reader@example.com")
    forged += [elsewhere, list_swapped, "x", "%00", made + "AAAA", "é" * 30]
    for each in forged:
        assert web.post(f"/u/{each}", data=ONE_CLICK).status_code in (404, 429)
    assert entries(database) == []
    assert job_of_token("nonsense") is None


def test_token_names_nobody(database: Database) -> None:
    made, job = token(database)
    assert "reader" not in made.lower()
    assert job_of_token(made) == job["id"]
    assert len(made) < 40


def test_csv_names_bad_rows_by_line_and_keeps_the_good(
    client: redis.Redis, database: Database
) -> None:
    text = (
        "email,reason,expires_at\n"
        "Good@Example.com,complaint,\n"
        "no address,,\n"
        "\n"
        "b@example.com,whim,\n"
        "c@exämple.com,manual,2030-01-01\n"
        "d@example.com\n"
        "@gone.example,,tomorrow\n"
    )
    seen: list[int] = []
    done = import_csv(
        Projection(client, database, SECRET),
        io.StringIO(text),
        author="me",
        why="test",
        now=1000.0,
        defaults=default_entry(1000.0),
        progress=seen.append,
    )
    assert (done.rows, done.changed, done.bad) == (6, 2, 4)
    assert [row.line for row in done.bad_rows] == [3, 5, 7, 8]
    assert "@" not in done.bad_rows[0].why.replace("'@'", "")
    assert seen == [6]
    assert {e.key for e in entries(database)} == {"good@example.com", "c@xn--exmple-cua.com"}
    assert Guard(client, database, SECRET).check([Ask("GOOD@example.com", "t", "bulk")]) == [
        "complaint"
    ]
    with database.read() as conn:
        assert conn.execute(select(audit.c.action)).scalars().all() == ["suppress.import"]


def test_unknown_columns_are_refused(client: redis.Redis, database: Database) -> None:
    with pytest.raises(BadEntry, match="not known: surname"):
        import_csv(
            Projection(client, database, SECRET),
            io.StringIO("address,surname\na@example.com,b\n"),
            author="me",
            why="",
            now=1.0,
            defaults=default_entry(1.0),
        )


def test_export_can_be_imported_again(
    client: redis.Redis, database: Database, tmp_path: Path
) -> None:
    projection = Projection(client, database, SECRET)
    rows = [
        Entry("a@example.com", "global", "hard_bounce", 1000.0, expires_at=5e9),
        Entry("a@example.com", "tenant", "complaint", 1000.0, "acme"),
        Entry("b@example.com", "bucket", "unsubscribe", 1000.0, "acme", "bulk"),
        Entry("c@example.com", "global", "hard_bounce", 1000.0, pending=True),
    ]
    add_by_hand(projection, rows, author="me", why="", now=1000.0)
    out = io.StringIO()
    assert export_csv(database, out, lambda _: None) == 4
    before = entries(database)
    for key in ("a@example.com", "b@example.com", "c@example.com"):
        remove_by_hand(projection, [key], author="me", why="", now=1000.0)
    assert entries(database) == []
    out.seek(0)
    done = import_csv(
        projection, out, author="me", why="", now=2000.0, defaults=default_entry(2000.0)
    )
    assert (done.changed, done.bad) == (4, 0)
    assert [
        (e.key, e.scope, e.tenant, e.bucket, e.reason, e.created_at, e.expires_at, e.pending)
        for e in entries(database)
    ] == [
        (e.key, e.scope, e.tenant, e.bucket, e.reason, e.created_at, e.expires_at, e.pending)
        for e in before
    ]


def test_twenty_thousand_rows(client: redis.Redis, database: Database) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("address",))
    writer.writerows((f"user{i}@example{i % 100}.com",) for i in range(20_000))
    text.seek(0)
    done = import_csv(
        Projection(client, database, SECRET),
        text,
        author="me",
        why="",
        now=1.0,
        defaults=default_entry(1.0),
    )
    assert (done.rows, done.changed, done.bad) == (20_000, 20_000, 0)
    guard = Guard(client, database, SECRET)
    asks = [Ask(f"user{i}@example{i % 100}.com", "t", "bulk") for i in range(0, 20_000, 7)]
    assert set(guard.check(asks)) == {"imported"}


def test_manual_changes_leave_an_audit_row(client: redis.Redis, database: Database) -> None:
    projection = Projection(client, database, SECRET)
    add_by_hand(
        projection,
        [Entry("a@example.com", "global", "manual", 5.0)],
        author="ann",
        why="asked",
        now=5.0,
    )
    remove_by_hand(projection, ["A@Example.com."], author="bob", why="again", now=6.0)
    with database.read() as conn:
        rows = conn.execute(select(audit.c.author, audit.c.action, audit.c.reason)).all()
    assert [tuple(row) for row in rows] == [
        ("ann", "suppress.add", "asked"),
        ("bob", "suppress.remove", "again"),
    ]
