"""What operators and later reports do to jobs: cancel, bury, try again, resolve, mark."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor

from mailweir.contracts.lifecycle import FINAL, Mark, State, check_move
from mailweir.spool import statements as sql
from mailweir.spool.base import Room, _cursor

_STEP = 100  # rows per write transaction
_PASSES = 5  # what a router dispatched meanwhile is seen in its chunk at the next one

T = TypeVar("T")


class Operating(Room):
    """Operations from outside the way of a job. Those with ``conn`` take part in the caller's
    transaction (a feedback row and what follows from it are true together), or make their own."""

    def cancel(
        self,
        now: float,
        *,
        job: int | None = None,
        message: int | None = None,
        campaign: str | None = None,
        tenant: str | None = None,
    ) -> int:
        """Cancel what has not been taken by a worker; how many jobs.

        Several conditions must all hold (a credential cancels only its tenant's jobs). Raises
        :class:`ValueError` without any."""
        given = {"id": job, "message_id": message, "campaign": campaign, "tenant": tenant}
        first = next((column for column, value in given.items() if value is not None), None)
        if first is None:
            raise ValueError("cancel needs a job, a message, a campaign or a tenant")
        parameters = (given[first], message, message, campaign, campaign, tenant, tenant)
        total = 0
        for _ in range(_PASSES):
            ids = [r[0] for r in self._read(sql.CANCELLABLE_BY[first], parameters)]
            if not ids:
                break
            steps = [ids[start : start + _STEP] for start in range(0, len(ids), _STEP)]
            total += sum(self._cancel(some, now) for some in steps)
        return total

    def _cancel(self, ids: Sequence[int], now: float) -> int:
        def work(_: Connection, cursor: DBAPICursor) -> int:
            some = self._ids(ids)
            untaken = self._ids(r[0] for r in self._rows(cursor, sql.CHUNKS_UNTAKEN_OF, (some,)))
            return self._run(cursor, sql.CANCEL, (now, "cancelled", some, untaken))

        return self._write(work)

    def retry_dead_letter(self, job_id: int, now: float) -> bool:
        """An operator tries a dead letter again: DUE at ``now``. Whether it was one."""
        return self._resolve(
            job_id, State.DEAD_LETTER, State.DUE, now, "tried again by an operator", None
        )

    def bury_dead_letter(self, job_id: int, now: float) -> bool:
        """An operator gives a dead letter up: CANCELLED. Whether it was one."""
        return self._resolve(
            job_id, State.DEAD_LETTER, State.CANCELLED, now, "buried by an operator", None
        )

    def resolve_uncertain(
        self,
        job_id: int,
        state: State,
        now: float,
        reason: str | None = None,
        conn: Connection | None = None,
    ) -> bool:
        """A report tells what became of an uncertain job: SENT, BOUNCED... Whether it was uncertain
        (once sent again it is not). Raises :class:`IllegalMove` or, for a state that is no end,
        :class:`ValueError`."""
        if state not in FINAL:
            raise ValueError(f"{state} does not resolve an uncertain job")
        return self._resolve(job_id, State.UNCERTAIN, state, now, reason, conn)

    def bounce_sent(
        self, job_id: int, reason: str, now: float, conn: Connection | None = None
    ) -> bool:
        """An asynchronous DSN overrules the 250: SENT -> BOUNCED. Whether it was sent."""
        return self._resolve(job_id, State.SENT, State.BOUNCED, now, reason, conn)

    def add_mark(self, job_id: int, mark: Mark, conn: Connection | None = None) -> bool:
        """Add what feedback tells of a job; marks only accumulate. Whether it is new."""
        return self.add_marks(job_id, {mark}, conn)

    def add_marks(self, job_id: int, new: Set[Mark], conn: Connection | None = None) -> bool:
        """The same for several at once."""

        def work(cursor: DBAPICursor) -> bool:
            rows = self._rows(cursor, sql.MARKS_OF, (job_id,))
            if not rows:
                return False
            marks = set(rows[0][0].split())
            wanted = marks | {mark.value for mark in new}
            if wanted == marks:
                return False
            self._run(cursor, sql.MARK, (" ".join(sorted(wanted)), job_id))
            return True

        return self._inside(work, conn)

    def _resolve(
        self,
        job_id: int,
        old: State,
        new: State,
        now: float,
        reason: str | None,
        conn: Connection | None,
    ) -> bool:
        check_move(old, new)
        due, ended = (now, None) if new is State.DUE else (None, now)
        parameters = (new.value, due, ended, reason, job_id, old.value)
        return self._inside(lambda cursor: self._run(cursor, sql.RESOLVE, parameters) == 1, conn)

    def _inside(self, work: Callable[[DBAPICursor], T], conn: Connection | None) -> T:
        if conn is not None:
            return work(_cursor(conn))
        return self._write(lambda _, cursor: work(cursor))
