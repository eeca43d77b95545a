"""Feedback into the tables: once per event id, with its job found, the job's state and marks set, all in one
transaction; then the ids are announced. What answers 2xx answers it after this.
"""

from __future__ import annotations

from collections import Counter
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
from mailweir.spool.feedback import feedback_row, insert_feedback, known_feedback, printable
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
        with self._database.write() as conn:
            found = find(conn, events, now, tenant, self._secret)
            kept: dict[str, tuple[Feedback, Found | None]] = {}
            for event, job in zip(events, found, strict=True):
                mine = _kept(event, job)
                kept.setdefault(mine.event_id, (mine, job))
            known = known_feedback(conn, list(kept))
            fresh = [pair for event_id, pair in kept.items() if event_id not in known]
            ids = new_ids(len(fresh))
            rows = [
                feedback_row(
                    row_id,
                    event,
                    recipient_key=None if job is None else job.recipient_key,
                    now=now,
                    raw=raw if row_id == ids[0] else b"",
                )
                for row_id, (event, job) in zip(ids, fresh, strict=True)
            ]
            written = insert_feedback(conn, rows)  # another process may have been first
            new = [pair for row_id, pair in zip(ids, fresh, strict=True) if row_id in written]
            self._apply(conn, [(event, job) for event, job in new if job is not None], now)
        for event, job in new:
            _TAKEN.labels(event.provider, event.type.value).inc()
            if job is None:
                _ORPHANS.labels(event.provider).inc()
        for provider, count in Counter(e.provider for e in events).items():
            _DUPLICATES.labels(provider).inc(count - sum(e.provider == provider for e, _ in new))
        if self._redis is not None:
            announce(self._redis, FEEDBACK, sorted(written))
        return Recorded(len(new), len(events) - len(new), sum(job is None for _, job in new))

    def _apply(
        self, conn: Connection, events: Sequence[tuple[Feedback, Found]], now: float
    ) -> None:
        """States move as the table of moves allows; marks only accumulate, so order does not matter."""
        marks: dict[int, set[Mark]] = {}
        known: dict[int, str] = {}
        for event, job in events:
            # whoever wrote an unproven report may count for one, not decide what became of the mail
            if job.proven:
                self._move(conn, event, job, now)
            mark = _MARKS.get(event.type)
            if mark is not None:
                marks.setdefault(job.id, set()).add(mark)
                known[job.id] = job.marks
        for job_id, wanted in marks.items():
            if not {mark.value for mark in wanted} <= set(known[job_id].split()):
                self._spool.add_marks(job_id, wanted, conn)

    def _move(self, conn: Connection, event: Feedback, job: Found, now: float) -> None:
        if event.type is EventType.BOUNCED:
            reason = event.category or "bounced"
            if not self._spool.bounce_sent(job.id, reason, now, conn):
                self._spool.resolve_uncertain(job.id, State.BOUNCED, now, reason, conn)
        elif event.type is EventType.DELIVERED and job.state == State.UNCERTAIN.value:
            self._spool.resolve_uncertain(job.id, State.SENT, now, "confirmed by a report", conn)


def _kept(event: Feedback, job: Found | None) -> Feedback:
    event = printable(msgspec.structs.replace(event, message_ids=()))
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
