"""Folds rows of attempts and feedback into a book."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select

from mailweir.contracts.events import BounceClass, EventType
from mailweir.plumbing.database import Database
from mailweir.plumbing.events import AttemptRow, FeedbackRow, News
from mailweir.spool.schema import attempts
from reputation.policy.book import Book, PathKey, Tried


def fold(book: Book, news: News, database: Database) -> None:
    """Count what came. Complaints and late bounces count for the path that sent the mail."""
    for row in sorted(news.attempts, key=_time):
        key = PathKey(row.source, row.provider, row.bucket)
        book.tried(
            Tried(row.at, key, row.number, row.outcome, row.category, row.blame, row.seconds)
        )
    wanted = [row for row in news.feedback if row.job_id is not None and _matters(row)]
    if not wanted:
        return
    paths = _paths(database, {row.job_id for row in wanted if row.job_id is not None})
    for event in wanted:
        sent = paths.get(event.job_id or 0)
        if sent is None:
            continue
        key, at = sent
        if event.event.type is EventType.COMPLAINED:
            book.complained(key, at)
        else:
            book.bounced_late(key, at)


def _time(row: AttemptRow) -> float:
    return row.at


def _matters(row: FeedbackRow) -> bool:
    event = row.event
    if event.type is EventType.COMPLAINED:
        return event.category != "not-spam"
    return event.type is EventType.BOUNCED and event.cls is BounceClass.HARD


def _paths(database: Database, job_ids: Iterable[int]) -> dict[int, tuple[PathKey, float]]:
    """The path and time of each job's sent attempt."""
    found: dict[int, tuple[PathKey, float]] = {}
    wanted = list(job_ids)
    c = attempts.c
    for start in range(0, len(wanted), 500):
        query = select(c.job_id, c.source, c.provider, c.bucket, c.at).where(
            c.job_id.in_(wanted[start : start + 500]), c.outcome.in_(("sent", "uncertain"))
        )
        with database.read() as conn:
            for row in conn.execute(query):
                found[row.job_id] = (PathKey(row.source, row.provider, row.bucket), row.at)
    return found
