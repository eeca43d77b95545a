"""The chain notices what was altered, removed or inserted; erasing a recipient does not break it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import delete, insert, select, update

from journal.audit import StillLive, close, erase, export, verify
from journal.recorder import Recorder
from mailweir.contracts.ids import format_id, new_id
from mailweir.contracts.job import Accepted, JobStatus
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database, migrate
from mailweir.spool.schema import (
    attempts,
    contents,
    decisions,
    jobs,
    journal,
    messages,
    metadata,
)

OLD = 60.0  # seconds ago: settled


KEEP = 86_400.0


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The journal on either database."""
    drop: Callable[[str], None] | None = None
    if request.param == "sqlite":
        made = Database(f"sqlite:///{tmp_path / 'spool.db'}")
    else:
        made = Database(request.getfixturevalue("postgres_new")())
        drop = request.getfixturevalue("postgres_drop")
    migrate(made)
    yield made
    url = made.url
    made.close()
    if drop is not None:
        drop(url)


def decide(database: Database, ago: float = OLD, job_id: int = 7) -> int:
    row_id = new_id(time.time() - ago)
    with database.write() as conn:
        conn.execute(
            insert(decisions).values(
                id=row_id,
                job_id=job_id,
                at=1.25,
                snapshot="1.2",
                policy_version=3,
                outcome="routed",
                pool="p",
                source="s",
                queue="bulk",
                rule="r",
                reason="",
                body="{}",
            )
        )
    return row_id


def attempt(database: Database, ago: float = OLD) -> int:
    row_id = new_id(time.time() - ago)
    with database.write() as conn:
        conn.execute(
            insert(attempts).values(
                id=row_id,
                job_id=7,
                number=1,
                at=2.5,
                source="s",
                pool="p",
                provider="gmail",
                bucket="bulk",
                tenant="t",
                outcome="sent",
                host="mx",
                stage="dot",
                code=250,
                enhanced="2.0.0",
                reply="ok",
                seconds=0.1,
            )
        )
    return row_id


def seal(database: Database) -> int:
    recorder = Recorder(database, Clock(), KEEP)
    total = 0
    while count := recorder.turn(time.time()):
        total += count
    return total


def check(database: Database) -> list[object]:
    report = verify(database, real=time.time(), keep_jobs=86_400.0)
    return [report.ok, report.broken, report.altered, report.missing]


def test_what_is_sealed_verifies_and_unsettled_records_wait(database: Database) -> None:
    decide(database)
    attempt(database)
    decide(database, ago=0.0)
    assert seal(database) == 2
    assert seal(database) == 0
    assert check(database) == [True, [], [], []]


def test_an_altered_record_is_named(database: Database) -> None:
    row_id = attempt(database)
    seal(database)
    with database.write() as conn:
        conn.execute(update(attempts).where(attempts.c.id == row_id).values(reply="ok."))
    ok, broken, altered, missing = check(database)
    assert (ok, broken, missing) == (False, [], [])
    assert altered == [f"attempt {format_id(row_id)}"]


def test_a_removed_record_is_named_unless_its_keeping_is_over(database: Database) -> None:
    row_id = decide(database)
    old = decide(database, ago=2 * 86_400.0)
    seal(database)
    with database.write() as conn:
        conn.execute(delete(decisions).where(decisions.c.id.in_([row_id, old])))
    report = verify(database, real=time.time(), keep_jobs=86_400.0)
    assert (len(report.missing), report.pruned) == (1, 1)


@pytest.mark.parametrize("column", ["body", "digest", "chain"])
def test_a_rewritten_segment_breaks_the_chain(database: Database, column: str) -> None:
    for _ in range(3):
        decide(database)
        seal(database)
    with database.write() as conn:
        other = conn.execute(select(journal.c[column]).where(journal.c.seq == 3)).scalar_one()
        conn.execute(update(journal).where(journal.c.seq == 2).values({column: other}))
    report = verify(database, real=time.time(), keep_jobs=86_400.0)
    assert 2 in report.broken


def test_a_removed_segment_breaks_the_chain(database: Database) -> None:
    for _ in range(3):
        decide(database)
        seal(database)
    with database.write() as conn:
        conn.execute(delete(journal).where(journal.c.seq == 2))
    assert not verify(database, real=time.time(), keep_jobs=86_400.0).ok


def test_export_carries_every_link(database: Database) -> None:
    decide(database)
    seal(database)
    decide(database)
    seal(database)
    lines = list(export(database))
    assert [line["segment"] for line in lines] == [1, 2]
    assert lines[-1]["link"] == verify(database, real=time.time(), keep_jobs=1.0).head


def job_of(database: Database, state: str) -> int:
    job_id = new_id()
    line = JobStatus("Jane@x.test", format_id(job_id), "accepted")
    other = JobStatus("bob@x.test", format_id(job_id + 1), "accepted")
    answer = msgspec.json.encode(Accepted(format_id(1), (line, other))).decode()
    with database.write() as conn:
        conn.execute(
            insert(messages).values(
                id=1,
                tenant="t",
                idempotency_key="k",
                request_hash=b"h",
                answer=answer,
                accepted_at=1.0,
            )
        )
        conn.execute(
            insert(contents).values(id=job_id, kind="mime", body=b"x", sha256=b"h", created_at=1.0)
        )
        conn.execute(
            insert(jobs).values(
                id=job_id,
                message_id=1,
                tenant="t",
                bucket="bulk",
                priority=5,
                recipient="Jane@x.test",
                recipient_key="jane@x.test",
                mail_from="a@y.test",
                lane="~01",
                flow="~01|t|5",
                content_id=job_id,
                meta="{}",
                state=state,
                accepted_at=1.0,
                due_at=2.0 if state == "held" else None,
                ended_at=None if state == "held" else 3.0,
            )
        )
    return job_id


def test_erasing_leaves_no_address_and_a_valid_chain(database: Database, tmp_path: Path) -> None:
    job_id = job_of(database, "sent")
    decide(database, job_id=job_id)
    seal(database)
    assert erase(database, "jane@x.test") == 1
    assert check(database)[0] is True
    with database.read() as conn:
        for table in metadata.tables.values():
            for row in conn.execute(select(table)):
                assert "jane" not in repr(tuple(row)).lower(), table.name


def test_a_live_job_is_not_erased(database: Database) -> None:
    job_of(database, "held")
    with pytest.raises(StillLive):
        erase(database, "jane@x.test")


def test_an_erased_recipients_neighbours_keep_their_answer(database: Database) -> None:
    job_of(database, "sent")
    erase(database, "jane@x.test")
    with database.read() as conn:
        text = conn.execute(select(messages.c.answer)).scalar_one()
    assert [line.recipient for line in msgspec.json.decode(text, type=Accepted).jobs][1:] == [
        "bob@x.test"
    ]


def test_old_segments_are_closed_and_still_hold_the_chain(database: Database) -> None:
    for ago in (2 * KEEP, 2 * KEEP, OLD):
        decide(database, ago=ago)
        seal(database)
    with database.write() as conn:
        old = new_id(time.time() - KEEP, 0)
        conn.execute(delete(decisions).where(decisions.c.id < old))
    assert close(database, time.time(), KEEP) == 2
    assert close(database, time.time(), KEEP) == 0
    report = verify(database, real=time.time(), keep_jobs=KEEP)
    assert (report.ok, report.closed, report.segments) == (True, 2, 3)
    # nobody can empty a young segment, nor rewrite the digest of a closed one
    with database.write() as conn:
        conn.execute(update(journal).where(journal.c.seq == 3).values(body="[]"))
        conn.execute(update(journal).where(journal.c.seq == 1).values(digest=b"x" * 32))
    assert verify(database, real=time.time(), keep_jobs=KEEP).broken == [1, 3]


def test_what_nothing_has_sealed_yet_is_told(database: Database) -> None:
    """A chain that holds says little while the recorder stands still."""
    for ago in (90.0, 80.0, 1.0):
        decide(database, ago)
    report = verify(database, real=time.time(), keep_jobs=KEEP)
    assert (report.ok, report.records, report.unsealed) == (True, 0, 2)
    Recorder(database, Clock(), KEEP).turn(time.time())
    report = verify(database, real=time.time(), keep_jobs=KEEP)
    assert (report.records, report.unsealed) == (2, 0)
