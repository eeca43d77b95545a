"""What operators change: pauses with reason and end, written to SQL with an audit row.

Reputation carries overrides into the routing snapshot, so routers obey within its next publication.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import delete, insert, select

from mailweir.contracts.ids import new_id
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database
from mailweir.spool.schema import audit, overrides

SUBJECT = re.compile(r"(bucket|pool|source|provider|tenant):[A-Za-z0-9._@-]{1,100}")


class BadSubject(ValueError):
    """A subject is ``bucket:``, ``pool:``, ``source:``, ``provider:`` or ``tenant:`` and a name."""


class Operator:
    """Writes overrides."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def pause(self, subject: str, seconds: float, author: str, reason: str) -> None:
        """Pause for so many policy seconds. Raises :class:`BadSubject`."""
        _check(subject)
        now = self._clock.now()
        with self._database.write() as conn:
            conn.execute(delete(overrides).where(overrides.c.subject == subject))
            conn.execute(
                insert(overrides).values(
                    subject=subject,
                    action="pause",
                    until=now + seconds,
                    author=author,
                    reason=reason,
                    at=now,
                )
            )
            conn.execute(
                insert(audit).values(
                    id=new_id(),
                    at=now,
                    author=author,
                    action="pause",
                    subject=subject,
                    reason=reason,
                )
            )

    def resume(self, subject: str, author: str, reason: str = "") -> bool:
        """End a pause; whether there was one. Raises :class:`BadSubject`."""
        _check(subject)
        with self._database.write() as conn:
            found = conn.execute(delete(overrides).where(overrides.c.subject == subject)).rowcount
            conn.execute(
                insert(audit).values(
                    id=new_id(),
                    at=self._clock.now(),
                    author=author,
                    action="resume",
                    subject=subject,
                    reason=reason,
                )
            )
        return bool(found)

    def overrides(self) -> list[dict[str, Any]]:
        """Pauses that have not ended."""
        now = self._clock.now()
        with self._database.read() as conn:
            rows = conn.execute(select(overrides).order_by(overrides.c.subject)).mappings().all()
        return [dict(row) for row in rows if row["until"] is None or row["until"] > now]


def _check(subject: str) -> None:
    if not SUBJECT.fullmatch(subject):
        raise BadSubject(
            f"{subject!r} is not a subject; write bucket:NAME, pool:NAME, source:NAME, "
            "provider:NAME or tenant:NAME"
        )
