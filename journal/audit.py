"""Verifies and exports the journal, and erases a recipient without breaking it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, select, update

from journal.chain import GENESIS, Entry, broken_links, link
from journal.records import PREFIX, TABLES, by_ids
from mailweir.contracts.ids import format_id, new_id
from mailweir.contracts.job import Accepted
from mailweir.contracts.lifecycle import FINAL
from mailweir.plumbing.bodies import Place
from mailweir.plumbing.database import Database
from mailweir.spool.schema import contents, feedback, jobs, journal, messages, positions

PAGE = 20  # segments read at once
LATE = 60.0  # real seconds after which a record should long be sealed


class Report(msgspec.Struct):
    """What a verification found. ``ok`` when nothing was altered or removed before its time."""

    segments: int = 0
    records: int = 0
    broken: list[int] = msgspec.field(default_factory=list)  # segments whose link does not hold
    altered: list[str] = msgspec.field(default_factory=list)  # "kind id"
    missing: list[str] = msgspec.field(default_factory=list)  # gone before their keeping ended
    pruned: int = 0  # outlived their keeping
    closed: int = 0  # segments whose list of records outlived its keeping; their links are checked
    unsealed: int = (
        0  # older than a minute and in no segment yet: the recorder does not run, or lags
    )
    head: str = ""  # the last link, hex: keep it elsewhere to notice a rewritten chain

    @property
    def ok(self) -> bool:
        """Whether the journal is what it was."""
        return not (self.broken or self.altered or self.missing)


def segments(
    database: Database, since: int = 0
) -> Iterator[tuple[int, float, int, bytes, bytes, list[Entry]]]:
    """(number, at, first ref, digest, link, entries) of every segment after ``since``, in order."""
    while True:
        with database.read() as conn:
            rows = conn.execute(
                select(journal).where(journal.c.seq > since).order_by(journal.c.seq).limit(PAGE)
            ).all()
        if not rows:
            return
        for row in rows:
            since = int(row.seq)
            entries = msgspec.json.decode(row.body, type=list[Entry])
            chain = bytes(row.chain)
            yield since, float(row.at), int(row.ref), bytes(row.digest), chain, entries


def verify(database: Database, *, real: float, keep_jobs: float) -> Report:
    """Recompute every link and every record that still exists.

    ``keep_jobs`` (seconds) before ``real`` (Unix seconds) records may be gone: they were pruned."""
    report = Report()
    before = GENESIS
    expected = 1
    prunable = new_id(real - keep_jobs, 0)
    for number, _, ref, digest, chain, entries in segments(database):
        while expected < number:
            report.broken.append(expected)  # a whole segment was removed
            expected += 1
        expected = number + 1
        report.segments += 1
        report.records += len(entries)
        if not entries and ref < prunable and link(before, digest) == chain:
            report.closed += 1
        else:
            report.broken += broken_links([(number, digest, chain, entries)], before)
        before = chain
        _check_records(database, entries, report, prunable)
    report.head = before.hex()
    report.unsealed = _unsealed(database, new_id(real - LATE, 0))
    return report


def _unsealed(database: Database, before: int) -> int:
    """Records made before the id that nothing has sealed: they could still be altered unseen."""
    with database.read() as conn:
        rows = conn.execute(
            select(positions.c.listener, positions.c.position).where(
                positions.c.listener.in_([PREFIX + kind for kind in TABLES])
            )
        )
        marks = {name.removeprefix(PREFIX): int(position) for name, position in rows}
        return sum(
            conn.execute(
                select(func.count()).where(table.c.id > marks.get(kind, 0), table.c.id <= before)
            ).scalar_one()
            for kind, table in TABLES.items()
        )


def close(database: Database, real: float, keep_jobs: float, limit: int = 200) -> int:
    """Drop the lists of records of segments whose records have all outlived their keeping, so that the
    journal does not grow for ever; digests and links stay. How many segments."""
    prunable = new_id(real - keep_jobs, 0)
    with database.write() as conn:
        rows = conn.execute(
            select(journal.c.seq, journal.c.body)
            .where(journal.c.ref < prunable, journal.c.body != "[]")
            .order_by(journal.c.seq)
            .limit(limit)
        ).all()
        count = 0
        for seq, body in rows:
            if max(entry.ref for entry in msgspec.json.decode(body, type=list[Entry])) < prunable:
                conn.execute(update(journal).where(journal.c.seq == seq).values(body="[]"))
                count += 1
    return count


def _check_records(database: Database, entries: list[Entry], report: Report, prunable: int) -> None:
    by_kind: dict[str, list[Entry]] = {}
    for entry in entries:
        by_kind.setdefault(entry.kind, []).append(entry)
    with database.read() as conn:
        for kind, members in by_kind.items():
            found = by_ids(conn, kind, [entry.ref for entry in members])
            for entry in members:
                digest = found.get(entry.ref)
                if digest is None and entry.ref < prunable:
                    report.pruned += 1
                elif digest is None:
                    report.missing.append(f"{kind} {format_id(entry.ref)}")
                elif digest != entry.digest:
                    report.altered.append(f"{kind} {format_id(entry.ref)}")


def export(database: Database) -> Iterator[dict[str, Any]]:
    """Every segment as plain values: number, time, digest and link in hex, entries."""
    for number, at, _, digest, chain, entries in segments(database):
        yield {
            "segment": number,
            "at": at,
            "digest": digest.hex(),
            "link": chain.hex(),
            "entries": [[entry.kind, format_id(entry.ref), entry.digest] for entry in entries],
        }


def _erase_answers(conn: Connection, recipient_key: str, nobody: str) -> None:
    """The doors' answers, kept for the same idempotency key again, name the recipient too."""
    mine = select(jobs.c.message_id, jobs.c.id).where(jobs.c.recipient_key == recipient_key)
    ids: dict[int, set[str]] = {}
    for message_id, job_id in conn.execute(mine):
        ids.setdefault(int(message_id), set()).add(format_id(job_id))
    rows = conn.execute(
        select(messages.c.id, messages.c.answer).where(
            messages.c.id.in_(list(ids)), messages.c.answer != ""
        )
    ).all()
    for message_id, text in rows:
        answer = msgspec.json.decode(text, type=Accepted)
        lines = tuple(
            msgspec.structs.replace(line, recipient=nobody) if line.id in ids[message_id] else line
            for line in answer.jobs
        )
        kept = msgspec.json.encode(msgspec.structs.replace(answer, jobs=lines)).decode()
        conn.execute(update(messages).where(messages.c.id == message_id).values(answer=kept))


class StillLive(Exception):
    """The recipient has jobs that have not ended; cancel them first."""


def erase(database: Database, recipient_key: str) -> int:
    """Remove a recipient (canonical address) from jobs, content only it had, and feedback; how many jobs.

    Decisions, attempts and the chain stay: they hold ids, no address. The suppression list keeps its entry:
    without it the next import would mail the person again. A body in a file is overwritten where a row names
    it; one that was pruned before goes with its file. Raises :class:`StillLive`, and ``DatabaseUnavailable``
    where a file of theirs cannot be reached."""
    nobody = f"erased-{secrets.token_hex(8)}@erased.invalid"
    with database.write() as conn:
        live = conn.execute(
            select(func.count())
            .select_from(jobs)
            .where(jobs.c.recipient_key == recipient_key, jobs.c.state.not_in(list(FINAL)))
        ).scalar_one()
        if live:
            raise StillLive(f"{live} jobs to this recipient have not ended; cancel them first")
        theirs = select(jobs.c.content_id).where(jobs.c.recipient_key == recipient_key)
        another = (
            select(jobs.c.id)
            .where(jobs.c.content_id == contents.c.id, jobs.c.recipient_key != recipient_key)
            .exists()
        )
        gone = delete(contents).where(contents.c.id.in_(theirs), ~another)
        where = (contents.c.body_file, contents.c.body_at, contents.c.body_size)
        places = [Place(*row) for row in conn.execute(gone.returning(*where)) if row[0] is not None]
        if places:
            with database.body_files() as files:
                files.erase(places)
        _erase_answers(conn, recipient_key, nobody)
        conn.execute(
            update(feedback)
            .where(feedback.c.recipient_key == recipient_key)
            .values(recipient_key=None, raw=None, body="{}")
        )
        done = conn.execute(
            update(jobs)
            .where(jobs.c.recipient_key == recipient_key)
            .values(recipient=nobody, recipient_key=nobody, variables=None, meta="{}")
        )
        return int(done.rowcount)
