"""What became of the jobs of each arm of an A/B split (S20), from what is kept of them.

A job keeps its arm over its retries (``router.policy.shares.arm_of``). Attempts and jobs that went by failover
count for no arm: a deferral counts for the arm whose pool and source made the attempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import quantiles
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import select

from mailweir.contracts.ids import new_id
from mailweir.contracts.lifecycle import Mark, State
from mailweir.contracts.route import Orders
from mailweir.plumbing.database import Database
from mailweir.spool.schema import attempts, jobs

PAGE = 500  # jobs read at once
MOST_LATENCIES = 100_000  # kept per arm; what comes later does not change the quantiles much


class Seen(NamedTuple):
    """A job of a split, with its attempts as (pool, source, outcome)."""

    arm: str  # "split/pool" or "split/pool/source"
    state: str
    marks: tuple[str, ...]
    seconds: float | None  # from acceptance to its end, policy seconds
    attempts: tuple[tuple[str, str, str], ...]


class Arm(msgspec.Struct):
    """One arm's outcome. Rates are shares of the jobs that ended there, of the attempts for deferrals, and
    of the sent jobs for what recipients did; None where there is nothing to divide by."""

    arm: str
    jobs: int = 0
    sent: int = 0
    bounced: int = 0
    other_ends: int = 0  # expired, refused, cancelled, uncertain ...
    waiting: int = 0
    attempts: int = 0
    deferrals: int = 0
    complained: int = 0
    delivered: int = 0
    opened: int = 0
    clicked: int = 0
    unsubscribed: int = 0
    sent_rate: float | None = None
    bounce_rate: float | None = None
    deferral_rate: float | None = None
    complaint_rate: float | None = None
    open_rate: float | None = None
    click_rate: float | None = None
    unsubscribe_rate: float | None = None
    latency_p50: float | None = None  # seconds from acceptance to sent
    latency_p95: float | None = None


_MARKS = (Mark.COMPLAINED, Mark.DELIVERED, Mark.OPENED, Mark.CLICKED, Mark.UNSUBSCRIBED)
_ENDS = frozenset(
    {State.EXPIRED, State.REFUSED, State.CANCELLED, State.UNCERTAIN, State.DEAD_LETTER}
)


def measure(seen: Iterable[Seen]) -> list[Arm]:
    """The arms, by name."""
    arms: dict[str, Arm] = {}
    latencies: dict[str, list[float]] = {}
    tries: Counter[tuple[str, str, str, str]] = Counter()  # split, pool, source, outcome
    for job in seen:
        arm = arms.setdefault(job.arm, Arm(job.arm))
        arm.jobs += 1
        if job.state == State.SENT:
            arm.sent += 1
            kept = latencies.setdefault(job.arm, [])
            if job.seconds is not None and len(kept) < MOST_LATENCIES:
                kept.append(job.seconds)
        elif job.state == State.BOUNCED:
            arm.bounced += 1
        elif job.state in _ENDS:
            arm.other_ends += 1
        else:
            arm.waiting += 1
        for mark in _MARKS:
            if mark in job.marks:
                setattr(arm, mark.value, getattr(arm, mark.value) + 1)
        split = job.arm.partition("/")[0]
        tries.update((split, *one) for one in job.attempts)
    for (split, pool, source, outcome), count in tries.items():
        for name in (f"{split}/{pool}/{source}", f"{split}/{pool}"):
            if name in arms:
                arms[name].attempts += count
                arms[name].deferrals += count if outcome == State.DEFERRED else 0
                break
    for arm in arms.values():
        _rates(arm, latencies.get(arm.arm, []))
    return sorted(arms.values(), key=lambda arm: arm.arm)


def _rates(arm: Arm, latencies: Sequence[float]) -> None:
    def share(part: int, whole: int) -> float | None:
        return round(part / whole, 6) if whole else None

    ended = arm.sent + arm.bounced + arm.other_ends
    arm.sent_rate, arm.bounce_rate = share(arm.sent, ended), share(arm.bounced, ended)
    arm.deferral_rate = share(arm.deferrals, arm.attempts)
    arm.complaint_rate = share(arm.complained, arm.sent)
    arm.open_rate, arm.click_rate = share(arm.opened, arm.sent), share(arm.clicked, arm.sent)
    arm.unsubscribe_rate = share(arm.unsubscribed, arm.sent)
    if latencies:
        cuts = quantiles(latencies, n=20, method="inclusive") if len(latencies) > 1 else None
        arm.latency_p50 = round(cuts[9] if cuts else latencies[0], 3)
        arm.latency_p95 = round(cuts[18] if cuts else latencies[0], 3)


def seen(database: Database, real: float, split: str | None = None) -> Iterator[Seen]:
    """The jobs of splits accepted since ``real`` (Unix seconds)."""
    last = new_id(real, 0)
    wanted = f'%"arm":"{split}/%' if split else '%"arm":"%'
    columns = (
        jobs.c.id, jobs.c.orders, jobs.c.state, jobs.c.marks, jobs.c.accepted_at, jobs.c.ended_at
    )  # fmt: skip
    while True:
        with database.read() as conn:
            query = (
                select(*columns)
                .where(jobs.c.id > last, jobs.c.orders.like(wanted))
                .order_by(jobs.c.id)
                .limit(PAGE)
            )
            rows = conn.execute(query).all()
            tried = _attempts(conn, [row.id for row in rows])
        for row in rows:
            last = row.id
            arm = msgspec.json.decode(row.orders, type=Orders).arm
            if split is None or arm.startswith(f"{split}/"):
                took = None if row.ended_at is None else row.ended_at - row.accepted_at
                yield Seen(arm, row.state, tuple(row.marks.split()), took, tuple(tried[row.id]))
        if len(rows) < PAGE:
            return


def _attempts(conn: Any, ids: Sequence[int]) -> dict[int, list[tuple[str, str, str]]]:
    found: dict[int, list[tuple[str, str, str]]] = {job_id: [] for job_id in ids}
    query = select(attempts.c.job_id, attempts.c.pool, attempts.c.source, attempts.c.outcome)
    for row in conn.execute(query.where(attempts.c.job_id.in_(ids))):
        found[row.job_id].append((row.pool, row.source, row.outcome))
    return found
