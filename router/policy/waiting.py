"""Holding a job: always with a reason, and a time that is never in the past."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mailweir.contracts.job import Job
from mailweir.contracts.route import Held, Rejected

RECHECK = 300.0  # seconds until a job that waits for an operator or a policy is looked at again
UNKNOWN_WAIT = 60.0  # where nobody knows when the reason ends
_SPREAD = 0.1  # of the wait, at most 30 s: held jobs do not come back as a herd
_SOONEST = 0.05


def held(
    job: Job,
    now: float,
    until: float,
    reason: str,
    *,
    rule: str = "",
    rejected: tuple[Rejected, ...] = (),
) -> Held:
    """Held until ``until`` (policy seconds), spread a little by the job's id; never beyond the job's
    own expiry, when it is looked at and ended."""
    wait = max(until - now, _SOONEST)
    wait += min(wait * _SPREAD, 30.0) * (job.id * 2654435761 % 1024 / 1024)
    until = now + wait
    if job.expires_at is not None:
        until = min(until, job.expires_at)
    return Held(until, reason, rejected, rule)


def summary(pool: str, rejected: Sequence[Rejected]) -> str:
    """One sentence for why no candidate could take a job: the commonest reason of the pools tried."""
    if not rejected:
        return f"pool {pool} has no source for this job"
    counts = Counter(r.why for r in rejected)
    why, times = counts.most_common(1)[0]
    rest = f" and {len(rejected) - times} others" if times < len(rejected) else ""
    return (
        f"no source can take it: {why} ({times} of {len(rejected)}{rest})"
        if rest
        else (f"no source can take it: {why}")
    )
