"""What workers read of the attempts table: earlier uncertain attempts, and counts after a lost Redis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import structlog
from redis import Redis
from sqlalchemy import func, select

from mailweir.contracts.lifecycle import State
from mailweir.contracts.policy import Policy
from mailweir.contracts.route import Orders
from mailweir.contracts.snapshot import Snapshot
from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database
from mailweir.spool.schema import attempts, jobs
from workers.throttle.layers import DAY, HOUR, cap_name, rule_day

log = structlog.get_logger(__name__)

KEEP = 3600
"""Real seconds a count outlives its slot."""


def uncertain_before(database: Database, job_ids: Sequence[int]) -> frozenset[int]:
    """Which of these jobs have an uncertain attempt behind them: they are not sent a third time."""
    query = (
        select(attempts.c.job_id)
        .where(attempts.c.job_id.in_(job_ids), attempts.c.outcome == State.UNCERTAIN.value)
        .distinct()
    )
    with database.read() as conn:
        return frozenset(conn.execute(query).scalars())


def counts(database: Database, snapshot: Snapshot, policy: Policy, now: float) -> dict[str, int]:
    """Every counted limit's count in its running slot (slot key -> attempts), from the table."""
    day, hour = now // DAY * DAY, now // HOUR * HOUR
    found: dict[str, int] = defaultdict(int)
    with database.read() as conn:
        for seconds, begin in ((DAY, day), (HOUR, hour)):
            query = (
                select(attempts.c.source, attempts.c.provider, attempts.c.bucket, func.count())
                .where(attempts.c.at >= begin)
                .group_by(attempts.c.source, attempts.c.provider, attempts.c.bucket)
            )
            for source, provider, bucket, count in conn.execute(query):
                name = cap_name(snapshot, source, provider, bucket, seconds)
                found[keys.counted(name, int(now // seconds))] += count
        if any(rule.action.daily_limit is not None for rule in policy.rules):
            query_rules = (
                select(jobs.c.orders, func.count())
                .join(attempts, attempts.c.job_id == jobs.c.id)
                .where(attempts.c.at >= day, jobs.c.orders.is_not(None))
                .group_by(jobs.c.orders)
            )
            for text, count in conn.execute(query_rules):
                orders = msgspec.json.decode(text, type=Orders)
                if orders.daily_limit is not None:
                    found[keys.counted(rule_day(orders.rule), int(now // DAY))] += count
    return dict(found)


def recount(
    database: Database,
    redis: Redis,
    *,
    epoch: str,
    snapshot: Snapshot,
    policy: Policy,
    clock: Clock,
) -> int:
    """Count again from ``attempts`` what a lost Redis knew, then let counted limits grant.

    What is being sent meanwhile was not counted: nothing counted is granted until this is done. The
    number of attempts counted. Raises Redis' and the database's errors.
    """
    now = clock.now()
    found = counts(database, snapshot, policy, now)
    with redis.pipeline(transaction=True) as pipe:
        for key, count in found.items():
            pipe.set(key, count, ex=_expiry(key, now, clock))
        pipe.set(keys.COUNTERS_READY, epoch)
        pipe.execute()
    total = sum(count for key, count in found.items() if _is_day(key))
    log.info("counted limits recounted", attempts=total, counters=len(found))
    return total


def _is_day(key: str) -> bool:
    return ":caph:" not in key


def _expiry(key: str, now: float, clock: Clock) -> int:
    seconds = DAY if _is_day(key) else HOUR
    return int(clock.real(seconds - now % seconds)) + KEEP
