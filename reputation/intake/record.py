"""Feedback into the tables: once per event id, with its job found, the job's state and marks set, all in one
transaction; then the ids are announced. What answers 2xx answers it after this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import prometheus_client
import redis
from sqlalchemy import Connection

from mailweir.contracts.events import UNPROVEN, EventType, Feedback
from mailweir.contracts.ids import new_ids
from mailweir.contracts.lifecycle import Mark, State
from mailweir.plumbing.database import Database
from mailweir.plumbing.events import FEEDBACK, announce
from mailweir.spool.feedback import feedback_row, insert_feedback
from mailweir.spool.store import Spool
from reputation.intake.finding import Found, find

ORPHAN = "orphan"

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


class Recorder:
    """Writes feedback. ``client`` None: nothing is announced, listeners find the rows by sweeping.
    ``secret``: the installation's, for unsubscribe tokens in returned mails; None: they prove nothing."""

    def __init__(
        self,
        database: Database,
        spool: Spool,
        client: redis.Redis | None,
        secret: bytes | None = None,
    ) -> None:
        self._database = database
        self._spool = spool
        self._redis = client
        self._secret = secret

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
                job = find(conn, event, now, tenant, self._secret)
                kept = _kept(event, job)
                row = feedback_row(
                    row_id,
                    kept,
                    recipient_key=None if job is None else job.recipient_key,
                    now=now,
                    raw=raw if row_id == ids[0] else b"",
                )
                if not insert_feedback(conn, row):
                    _DUPLICATES.labels(event.provider).inc()
                    continue
                written.append(row_id)
                done.append(event)
                if job is None:
                    orphans += 1
                    _ORPHANS.labels(event.provider).inc()
                else:
                    self._apply(conn, kept, job, now)
        for event in done:
            _TAKEN.labels(event.provider, event.type.value).inc()
        if self._redis is not None:
            announce(self._redis, FEEDBACK, written)
        return Recorded(len(written), len(events) - len(written), orphans)

    def _apply(self, conn: Connection, event: Feedback, job: Found, now: float) -> None:
        """States move as the table of moves allows; marks only accumulate, so order does not matter."""
        job_id = job.id
        if not job.proven:
            pass  # whoever wrote it may count for one report, not decide what became of the mail
        elif event.type is EventType.BOUNCED:
            reason = event.category or "bounced"
            if not self._spool.bounce_sent(job_id, reason, now, conn):
                self._spool.resolve_uncertain(job_id, State.BOUNCED, now, reason, conn)
        elif event.type is EventType.DELIVERED:
            self._spool.resolve_uncertain(job_id, State.SENT, now, "confirmed by a report", conn)
        mark = _MARKS.get(event.type)
        if mark is not None:
            self._spool.add_mark(job_id, mark, conn)


def _kept(event: Feedback, job: Found | None) -> Feedback:
    event = msgspec.structs.replace(event, message_ids=())
    if job is None:
        return msgspec.structs.replace(
            event, job_id=None, recipient=None, suppress=None, tags=(*event.tags, ORPHAN)
        )
    event = msgspec.structs.replace(event, job_id=job.id, tenant=job.tenant)
    if job.proven:
        return event
    # once per job: whoever repeats a report does not repeat what it says
    return msgspec.structs.replace(
        event,
        event_id=f"{UNPROVEN}:{job.id}:{event.type.value}",
        suppress=None,
        tags=(*event.tags, UNPROVEN),
    )
