"""Recorded decisions with everything that made them: the job, the policy and the snapshot of then."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import func, select

from mailweir.contracts.job import Job
from mailweir.contracts.snapshot import Snapshot
from mailweir.plumbing import policies
from mailweir.plumbing.database import Database
from mailweir.spool.schema import decisions, snapshots
from mailweir.spool.store import Spool
from reputation.publisher import load
from router.policy.compiled import CompiledPolicy, in_region

KEPT = 128  # snapshots and policies held in memory


class Gone(Exception):
    """A record, or what made it, is no longer kept; the message says which."""


class Recorded(NamedTuple):
    """One decision: its record's body, the job as it is now, and its number among the job's."""

    body: dict[str, Any]
    job: Job


class Archive:
    """Reads records and what they refer to."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._spool = Spool(database)
        self.snapshot = lru_cache(KEPT)(self._snapshot)
        self.policy = lru_cache(KEPT)(self._policy)

    def of_job(self, job_id: int, number: int | None = None) -> Recorded:
        """Decision ``number`` (1 is the first) of a job, by default its last. Raises :class:`Gone`."""
        job = self._spool.job(job_id)
        if job is None:
            raise Gone("there is no such job, or it is no longer kept")
        rows = [row for row in self._spool.decisions_of(job_id) if row.body]
        if not rows:
            raise Gone("nothing has been decided about this job yet")
        if number is not None and not 1 <= number <= len(rows):
            raise Gone(f"the job has {len(rows)} decisions")
        row = rows[-1] if number is None else rows[number - 1]
        return Recorded(msgspec.json.decode(row.body or ""), job)

    def latest(self, count: int) -> Iterator[Recorded]:
        """The last decision of each of the ``count`` jobs decided last, oldest first."""
        newest = (
            select(func.max(decisions.c.id).label("id"))
            .group_by(decisions.c.job_id)
            .order_by(func.max(decisions.c.id).desc())
            .limit(count)
            .subquery()
        )
        query = (
            select(decisions.c.job_id, decisions.c.body)
            .join(newest, newest.c.id == decisions.c.id)
            .where(decisions.c.body.is_not(None))
            .order_by(decisions.c.id)
        )
        with self._database.read() as conn:
            rows = conn.execute(query).all()
        for job_id, body in rows:
            job = self._spool.job(int(job_id))
            if job is not None:
                yield Recorded(msgspec.json.decode(body), job)

    def _snapshot(self, version: int) -> Snapshot:
        """The snapshot of that version; 0 is the empty one before reputation's first."""
        if version == 0:
            return Snapshot(version=0, created_at=0.0, policy_version=0, paths={})
        with self._database.read() as conn:
            body = conn.execute(
                select(snapshots.c.body).where(snapshots.c.version == version)
            ).scalar()
        if body is None:
            raise Gone(f"snapshot {version} is no longer kept (30 days)")
        return load(bytes(body))

    def _policy(self, version: int, region: str | None) -> CompiledPolicy:
        """The policy of that version, as the router read it whose queue had this region."""
        try:
            policy = policies.stored(self._database, version)[2]
        except policies.UnknownVersion as error:
            raise Gone(str(error)) from error
        return CompiledPolicy(in_region(policy, region))


def snapshot_version(body: dict[str, Any]) -> int:
    """The snapshot a record was made with."""
    return int(str(body["snapshot"]).partition(".")[0])


def queue_region(body: dict[str, Any]) -> str | None:
    """The region of the queue a record names; None where queues have none."""
    return str(body.get("queue") or "").partition("@")[2] or None
