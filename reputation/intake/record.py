"""Feedback into the tables: once per event id, with its job found, the job's state and marks set, all in one
transaction; then the ids are announced. What answers 2xx answers it after this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import prometheus_client
import redis
from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from mailweir.contracts.events import EventType, Feedback
from mailweir.contracts.ids import new_ids
from mailweir.contracts.lifecycle import Mark, State
from mailweir.mail.address import InvalidAddress, canonical
from mailweir.plumbing.database import Database
from mailweir.plumbing.events import FEEDBACK, announce
from mailweir.spool.schema import feedback, jobs
from mailweir.spool.store import Spool

MAX_RAW = 256 * 1024
"""Bytes of a raw event that are kept."""

LOOK_BACK = 30 * 86400.0
"""Policy seconds back in which a job may be the one an event speaks of."""

ORPHAN = "orphan"
BY_MAIL = frozenset({"dsn", "bounce", "arf", "autoreply", "mail"})
"""Reports that come by mail: anyone can write one, so only our own token proves it ours."""

_TAKEN = prometheus_client.Counter(
    "mailweir_feedback", "Feedback events taken, by provider and type.", ["provider", "type"]
)
_ORPHANS = prometheus_client.Counter(
    "mailweir_feedback_orphans", "Events for mail we do not know.", ["provider"]
)
_DUPLICATES = prometheus_client.Counter(
    "mailweir_feedback_duplicates", "Events taken before.", ["provider"]
)
_MARKS = {
    EventType.DELIVERED: Mark.DELIVERED,
    EventType.COMPLAINED: Mark.COMPLAINED,
    EventType.UNSUBSCRIBED: Mark.UNSUBSCRIBED,
    EventType.OPENED: Mark.OPENED,
    EventType.CLICKED: Mark.CLICKED,
}


class Recorded(NamedTuple):
    """What became of a batch."""

    new: int
    duplicates: int
    orphans: int


class _Job(NamedTuple):
    id: int
    tenant: str
    recipient_key: str


class Recorder:
    """Writes feedback. ``client`` None: nothing is announced, listeners find the rows by sweeping."""

    def __init__(self, database: Database, spool: Spool, client: redis.Redis | None) -> None:
        self._database = database
        self._spool = spool
        self._redis = client

    def record(
        self, events: Sequence[Feedback], raw: bytes, now: float, *, tenant: str | None = None
    ) -> Recorded:
        """Commit events at policy time ``now``; ``tenant`` is whose path they came by, if it is known.

        An event nobody was mailed for is kept, counted, and stripped of all that could change anything:
        a forged bounce must not end an address. Raises ``DatabaseUnavailable``.
        """
        ids = new_ids(len(events))
        written: list[int] = []
        orphans = 0
        done: list[Feedback] = []
        with self._database.write() as conn:
            for row_id, event in zip(ids, events, strict=True):
                job = self._job(conn, event, now, tenant)
                kept = _kept(event, job)
                row = _row(row_id, kept, raw if row_id == ids[0] else b"", job, now)
                if not self._insert(conn, row):
                    _DUPLICATES.labels(event.provider).inc()
                    continue
                written.append(row_id)
                done.append(event)
                if job is None:
                    orphans += 1
                    _ORPHANS.labels(event.provider).inc()
                else:
                    self._apply(conn, kept, job.id, now)
        for event in done:
            _TAKEN.labels(event.provider, event.type.value).inc()
        if self._redis is not None:
            announce(self._redis, FEEDBACK, written)
        return Recorded(len(written), len(events) - len(written), orphans)

    def _insert(self, conn: Connection, row: dict[str, Any]) -> bool:
        make = postgresql.insert if self._database.dialect_name == "postgresql" else sqlite.insert
        statement = make(feedback).values(row).on_conflict_do_nothing(index_elements=["event_id"])
        # the row comes back only if it was written: drivers disagree about counts
        return conn.execute(statement.returning(feedback.c.id)).first() is not None

    def _job(
        self, conn: Connection, event: Feedback, now: float, tenant: str | None
    ) -> _Job | None:
        columns = (jobs.c.id, jobs.c.tenant, jobs.c.recipient_key)
        if event.job_id is not None:
            query = select(*columns).where(jobs.c.id == event.job_id)
        elif event.provider in BY_MAIL or event.recipient is None:
            return None
        else:
            try:
                key = canonical(event.recipient)
            except InvalidAddress:
                return None
            query = (
                select(*columns)
                .where(
                    jobs.c.recipient_key == key,
                    jobs.c.first_attempt_at.is_not(None),
                    jobs.c.accepted_at >= now - LOOK_BACK,
                )
                .order_by(jobs.c.id.desc())
                .limit(1)
            )
        if tenant is not None:
            query = query.where(jobs.c.tenant == tenant)
        found = conn.execute(query).first()
        return None if found is None else _Job(found.id, found.tenant, found.recipient_key)

    def _apply(self, conn: Connection, event: Feedback, job_id: int, now: float) -> None:
        """States move as the table of moves allows; marks only accumulate, so order does not matter."""
        if event.type is EventType.BOUNCED:
            reason = event.category or "bounced"
            if not self._spool.bounce_sent(job_id, reason, now, conn):
                self._spool.resolve_uncertain(job_id, State.BOUNCED, now, reason, conn)
        elif event.type is EventType.DELIVERED:
            self._spool.resolve_uncertain(job_id, State.SENT, now, "confirmed by a report", conn)
        mark = _MARKS.get(event.type)
        if mark is not None:
            self._spool.add_mark(job_id, mark, conn)


def _kept(event: Feedback, job: _Job | None) -> Feedback:
    if job is not None:
        return msgspec.structs.replace(event, job_id=job.id, tenant=job.tenant)
    return msgspec.structs.replace(
        event, job_id=None, recipient=None, suppress=None, tags=(*event.tags, ORPHAN)
    )


def _row(row_id: int, event: Feedback, raw: bytes, job: _Job | None, now: float) -> dict[str, Any]:
    return {
        "id": row_id,
        "event_id": event.event_id[:255],
        "job_id": event.job_id,
        "type": event.type.value,
        "provider": event.provider,
        "occurred_at": event.occurred_at,
        "received_at": now,
        "recipient_key": None if job is None else job.recipient_key,
        "tenant": event.tenant,
        "category": event.category,
        "body": msgspec.json.encode(event).decode(),
        "raw": raw[:MAX_RAW] or None,
    }
