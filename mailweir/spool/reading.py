"""What console, journal, reputation and recounts read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from mailweir.contracts.events import Attempt, Feedback
from mailweir.contracts.job import Bucket, Job
from mailweir.contracts.lifecycle import Mark, State
from mailweir.spool import statements as sql
from mailweir.spool.base import Room
from mailweir.spool.records import Backlog, DecisionRow
from mailweir.spool.rows import attempt_of, jobs_of

_LARGEST = (1 << 63) - 1
_decode_feedback = msgspec.json.Decoder(Feedback).decode


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a job is or was, beside what :class:`Job` tells."""

    pool: str | None
    source: str | None
    chunk_id: int | None
    marks: tuple[Mark, ...]
    ended_at: float | None


class Reading(Room):
    """Reads; none of them takes the write lock."""

    def job(self, job_id: int) -> Job | None:
        """One job."""
        jobs = jobs_of(self._read(sql.JOB, (job_id,)))
        return jobs[0] if jobs else None

    def whereabouts(self, job_id: int) -> Whereabouts | None:
        """Pool, source, fence, marks and end of a job."""
        rows = self._read(sql.WHERE_IS, (job_id,))
        if not rows:
            return None
        pool, source, chunk_id, marks, ended_at = rows[0]
        return Whereabouts(pool, source, chunk_id, tuple(Mark(m) for m in marks.split()), ended_at)

    def jobs_of(self, message_id: int) -> list[Job]:
        """Jobs of a message, in the order given to the door."""
        return jobs_of(self._read(sql.JOBS_OF, (message_id,)))

    def counts(self, ended_since: float = 0.0) -> dict[str, dict[str, int]]:
        """bucket -> state -> jobs; of those that ended only the ones since (policy seconds)."""
        counts: dict[str, dict[str, int]] = {}
        for bucket, state, jobs in self._read(sql.COUNTS, (ended_since,)):
            states = counts.setdefault(bucket, {})
            states[state] = states.get(state, 0) + int(jobs)
        return counts

    def waiting(self, bucket: Bucket, now: float | None = None) -> Backlog:
        """Waiting jobs of a bucket at ``now`` (policy seconds; the clock's by default)."""
        at = self.clock.now() if now is None else now
        due, later, oldest = self._read(sql.BACKLOG, (at, at, at, bucket.value))[0]
        return Backlog(int(due), int(later), oldest)

    def search(
        self,
        *,
        recipient: str | None = None,
        tenant: str | None = None,
        campaign: str | None = None,
        state: State | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Jobs that meet every condition, newest first; ``recipient`` is the canonical key
        (``mailweir.mail.address.canonical``), ``before`` the last id of the page before."""
        rest = (tenant, tenant, campaign, campaign, state, state, before or _LARGEST, limit)
        first = {"recipient_key": recipient, "campaign": campaign, "tenant": tenant}
        for column, value in first.items():
            if value is not None:
                return jobs_of(self._read(sql.SEARCH_BY[column], (value, *rest)))
        return jobs_of(self._read(sql.SEARCH_ALL, (None, *rest)))

    # --- timeline
    def decisions_of(self, job_id: int) -> list[DecisionRow]:
        """What the router decided about a job, oldest first."""
        return [DecisionRow(*row) for row in self._read(sql.DECISIONS_OF, (job_id,))]

    def attempts_of(self, job_id: int) -> list[Attempt]:
        """The attempts of a job, first to last."""
        return [attempt_of(row) for row in self._read(sql.ATTEMPTS_OF, (job_id,))]

    def feedback_of(self, job_id: int) -> list[Feedback]:
        """What was reported about a job, oldest first by event time."""
        return [_decode_feedback(row[0]) for row in self._read(sql.FEEDBACK_OF, (job_id,))]

    # --- listeners and recounts
    def attempts(self, ids: Sequence[int]) -> list[Attempt]:
        """Attempts by id; what is not there is absent."""
        return [attempt_of(row) for row in self._read(sql.ATTEMPTS_BY_ID, [self._ids(ids)])]

    def attempts_after(self, attempt_id: int, limit: int = 1000) -> list[Attempt]:
        """Attempts by ascending id after this one. Ids are made before the commit: a listener goes
        back 60 s from its position after a gap."""
        rows = self._read(sql.ATTEMPTS_AFTER, (attempt_id, limit))
        return [attempt_of(row) for row in rows]

    def attempts_since(self, at: float, after_id: int = 0, limit: int = 1000) -> list[Attempt]:
        """Attempts that began at or after ``at`` (policy seconds), by time and id; the next page
        begins at the last one's ``at`` and ``id``."""
        rows = self._read(sql.ATTEMPTS_AT, (at, at, after_id, limit))
        return [attempt_of(row) for row in rows]

    def recipient_attempts(self, since: float, now: float) -> dict[str, dict[int, float]]:
        """canonical recipient -> job -> time (policy seconds) of its last attempt since, or ``now`` when
        the job is on its way: what the limit per recipient is recounted from."""
        times: dict[str, dict[int, float]] = {}
        for key, job_id, at in self._read(sql.ATTEMPTS_BY_RECIPIENT, (since, now)):
            jobs = times.setdefault(key, {})
            jobs[job_id] = max(at, jobs.get(job_id, at))
        return times
