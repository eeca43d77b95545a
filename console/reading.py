"""What operators ask, read once and answered as plain values: status, queues, one job's timeline."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
from redis.exceptions import RedisError
from sqlalchemy import func, select

from console.estimate import contended, lane_rates, seconds
from console.queues import queues_now
from mailweir.contracts.heartbeat import read_beat
from mailweir.contracts.ids import format_id
from mailweir.contracts.job import Bucket, Job
from mailweir.contracts.lifecycle import IN_FLIGHT, WAITING
from mailweir.contracts.policy import Policy
from mailweir.contracts.snapshot import FastPath, PathState
from mailweir.plumbing import keys, policies
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database
from mailweir.plumbing.publisher import BrokerUnavailable, Publisher
from mailweir.plumbing.redis import connect
from mailweir.plumbing.settings import Settings
from mailweir.plumbing.telemetry import mask_address
from mailweir.spool.schema import jobs
from mailweir.spool.store import Spool
from reputation.signals import placements
from router.fast import FastReader
from router.policy.compiled import CompiledPolicy, in_region
from router.policy.reach import CutOff, cut_off
from router.precedence import better
from router.reach import ReachReader
from router.snapshots import SnapshotReader
from router.window import Windows


class QueueRow(msgspec.Struct):
    """One bucket queue: what Flower shows, and what it stands for."""

    queue: str
    chunks: int | None  # messages in the broker; None: the broker does not answer
    window: int  # jobs dispatched and not yet taken
    per_second: float  # jobs its fleet finished lately, per real second


class BucketRow(msgspec.Struct):
    """One bucket: what waits in the spool."""

    bucket: str
    due: int
    later: int
    oldest_seconds: float  # policy seconds the oldest due job has waited
    backlog_seconds: float | None  # due jobs over the current rate; None while nothing moves
    # policy seconds until the due jobs are sent: the same, or what limits of the slowest lane allow
    delivery_seconds: float | None
    states: dict[str, int]


class Queues(msgspec.Struct):
    """Queue depth with estimated delivery time."""

    queues: list[QueueRow]
    buckets: list[BucketRow]


class Reader:
    """Opens what it needs once; close it."""

    def __init__(self, settings: Settings, clock: Clock, database: Database) -> None:
        self._settings = settings
        self._clock = clock
        self.database = database
        self.spool = Spool(database)
        self.redis = connect(settings)
        self._publisher = Publisher(settings)
        self._snapshots = SnapshotReader(self.redis)
        self._fast = FastReader(self.redis, clock)
        self._reach = ReachReader(self.redis)
        self._windows = Windows(self.redis, settings.router)

    def close(self) -> None:
        """Close connections."""
        self._publisher.close()
        self.redis.close()

    def now(self) -> float:
        """Policy seconds."""
        return self._clock.now()

    def queues(self) -> Queues:
        """Every bucket queue and bucket."""
        names = self._names()
        try:
            depths: dict[str, int | None] = dict(self._publisher.depths((*names, keys.INGRESS)))
        except BrokerUnavailable:
            depths = {}
        window = self.spool.window().queues
        finished = self._windows.finished(names)
        counts = self.spool.counts()
        now = self._clock.now()
        buckets = []
        for bucket in Bucket:
            backlog = self.spool.waiting(bucket, now)
            rate = sum(finished[q] for q in names if keys.queue_bucket(q) is bucket) / 10
            buckets.append(
                BucketRow(
                    bucket=bucket,
                    due=backlog.due,
                    later=backlog.later,
                    oldest_seconds=round(max(0.0, now - (backlog.oldest_due or now)), 1),
                    backlog_seconds=(
                        0.0 if not backlog.due else round(backlog.due / rate, 1) if rate else None
                    ),
                    delivery_seconds=self._needs(bucket, backlog.due, rate, now),
                    states=counts.get(bucket, {}),
                )
            )
        rows = [
            QueueRow(name, depths.get(name), window.get(name, 0), round(finished[name] / 10, 1))
            for name in names
        ]
        rows.append(QueueRow(keys.INGRESS, depths.get(keys.INGRESS), 0, 0.0))
        return Queues(rows, buckets)

    def workers(self) -> list[dict[str, Any]]:
        """Workers heard of lately."""
        try:
            beats = self.redis.hgetall(keys.WORKERS)
        except RedisError:
            return []
        real = time.time()
        rows = []
        for name, body in beats.items():
            beat = read_beat(body)
            if beat is not None and beat.alive(real):
                age = round(real - beat.at, 1)
                rows.append({"name": _text(name), "age_seconds": age, **msgspec.to_builtins(beat)})
        return sorted(rows, key=lambda row: row["name"])

    def cut_off(self) -> list[CutOff]:
        """Sources the policy in force needs in a queue whose live workers do not reach them."""
        try:
            policy = policies.current(self.database)
        except policies.NoPolicy:
            return []
        compiled = CompiledPolicy(in_region(policy, self._settings.region))
        return cut_off(compiled, self._reach.get())

    def _names(self) -> tuple[str, ...]:
        """The bucket queues by the policy in force, and those that still hold chunks of an earlier one."""
        return queues_now(self._settings, self.database, self.spool)

    def status(self) -> dict[str, Any]:
        """Health of the parts, jobs by state, workers."""
        try:
            epoch = self.redis.get(keys.EPOCH)
            state = "ok" if epoch else "no epoch: counts are being rebuilt"
        except RedisError as error:
            state = f"unavailable: {type(error).__name__}"
        queues = self.queues()
        return {
            "spool": self.database.dialect_name,
            "redis": state,
            "broker": "ok" if queues.queues[0].chunks is not None else "unavailable",
            "workers": self.workers(),
            "buckets": msgspec.to_builtins(queues.buckets),
            "cut_off": [row._asdict() for row in self.cut_off()],
            "policy_time": self._clock.now(),
        }

    def paths(self) -> list[dict[str, Any]]:
        """Every path of the snapshot in force, with its live state and the newest seed-inbox test."""
        snapshot, fast = self._snapshots.get(), self._fast.get()
        seeds = placements(self.database)
        names = {*snapshot.paths}
        seen = {tuple(name.split("|")[:2]) for name in names}
        rows = []
        for name in sorted(names):
            source, provider, bucket = name.split("|", 2)
            state = snapshot.paths[name]
            live = fast.path(source, provider)
            rows.append(_path_row(source, provider, bucket, state, live))
        for name in sorted(fast.paths):
            source, _, provider = name.partition("|")
            if (source, provider) not in seen:
                state = snapshot.path(source, provider, "")
                rows.append(_path_row(source, provider, "any", state, fast.paths[name]))
        for row in rows:
            row["inbox"] = seeds.get((row["source"], row["provider"]), (None,))[0]
        return rows

    def policy(self) -> tuple[list[policies.Version], str]:
        """History and text of the policy in force."""
        return policies.history(self.database), policies.stored(self.database)[1]

    def estimate(self, job: Job) -> float | None:
        """When a job that has not ended should be sent (policy seconds): its due time, and the time its
        bucket's backlog takes at the present rate, or its lane's by its limits where that is longer.
        None when it ended, or while nothing moves."""
        if job.state not in WAITING | IN_FLIGHT or (job.due_at is None and job.state in WAITING):
            return None
        now = self._clock.now()
        due = max(job.due_at or now, now)
        rate = sum(
            count / 10
            for queue, count in self._windows.finished(self._names()).items()
            if keys.queue_bucket(queue) is job.bucket
        )
        waiting = self.spool.waiting(job.bucket, now).due
        needs = self._needs(job.bucket, waiting, rate, now, job.lane)
        return None if needs is None else due + needs

    def _needs(
        self, bucket: Bucket, ahead: int, rate: float, now: float, lane: str | None = None
    ) -> float | None:
        """Policy seconds until the due jobs of a bucket are sent, or those before a job of ``lane``;
        ``rate``: jobs the bucket finishes per real second."""
        if not ahead:
            return 0.0
        try:
            policy = policies.current(self.database)
        except policies.NoPolicy:
            policy = Policy()
        due = self._lanes(bucket, now)
        if lane is not None:
            due = {lane: due.get(lane, 0)}
        waiting = self._contended(bucket, due, policy, now)
        snapshot, fast = self._snapshots.get(), self._fast.get()
        rates = lane_rates(waiting, bucket, policy, snapshot, fast)
        found = seconds(ahead, rate / self._clock.rate, waiting, rates)
        return None if found is None else round(found, 1)

    def _contended(
        self, bucket: Bucket, due: Mapping[str, int], policy: Policy, now: float
    ) -> dict[str, float]:
        """Jobs each lane sends before the ``due`` ones of the bucket are through."""
        rivals = CompiledPolicy(policy).rivals[bucket]
        others = {other: self._lanes(other, now) for other in rivals}
        first = better(bucket)
        return {
            lane: contended(
                own,
                sum(lanes.get(lane, 0) for other, lanes in others.items() if other in first),
                sum(lanes.get(lane, 0) for other, lanes in others.items() if other not in first),
            )
            for lane, own in due.items()
        }

    def _lanes(self, bucket: Bucket, now: float) -> dict[str, int]:
        """Due jobs of a bucket per lane."""
        query = (
            select(jobs.c.flow, func.count())
            .where(jobs.c.bucket == bucket.value, jobs.c.due_at <= now)
            .group_by(jobs.c.flow)
        )
        lanes: Counter[str] = Counter()
        with self.database.read() as conn:
            for flow, count in conn.execute(query):
                lanes[str(flow).partition("|")[0]] += int(count)
        return lanes

    def trace(self, job: Job) -> dict[str, Any]:
        """Everything known of one job, oldest first. The recipient is masked."""
        entries: list[dict[str, Any]] = [
            {"at": job.accepted_at, "what": "accepted", "text": f"bucket {job.bucket}"}
        ]
        for row in self.spool.decisions_of(job.id):
            to = f"{row.pool}/{row.source} in {row.queue}:" if row.outcome == "routed" else ""
            body = msgspec.json.decode(row.body) if row.body else None
            before = (body or {}).get("job", {}).get("reason")
            entries.append(
                {
                    "at": row.at,
                    "what": row.outcome,
                    "text": " ".join(filter(None, (to, row.reason, before and f"after {before}"))),
                    "rule": row.rule,
                    "snapshot": row.snapshot,
                    "policy": row.policy_version,
                    "decision": body,
                }
            )
        for attempt in self.spool.attempts_of(job.id):
            entries.append(
                {
                    "at": attempt.at,
                    "what": attempt.outcome,
                    "text": f"attempt {attempt.number} by {attempt.source}"
                    f"{attempt.host and f' to {attempt.host}'}: {attempt.reply or attempt.stage}",
                    "category": attempt.category,
                    "stage": attempt.stage,
                    "layer": attempt.layer,
                    "seconds": round(attempt.seconds, 4),
                    "conversation": (
                        msgspec.json.decode(attempt.conversation) if attempt.conversation else None
                    ),
                }
            )
        for event in self.spool.feedback_of(job.id):
            entries.append(
                {
                    "at": event.occurred_at,
                    "what": event.type,
                    "text": f"reported by {event.provider}: {event.reply or event.category or ''}",
                }
            )
        entries.sort(key=lambda entry: entry["at"])
        return {
            "id": format_id(job.id),
            "message": format_id(job.message_id),
            "state": job.state,
            "reason": job.reason,
            "tenant": job.tenant,
            "bucket": job.bucket,
            "priority": job.priority,
            "recipient": mask_address(job.recipient),
            "due_at": job.due_at,
            "estimated_at": self.estimate(job),
            "attempts": job.attempts,
            "timeline": entries,
        }


def _path_row(
    source: str, provider: str, bucket: str, state: PathState, live: FastPath
) -> dict[str, Any]:
    return {
        "source": source,
        "provider": provider,
        "bucket": bucket,
        "state": state.state,
        "score": state.score,
        "weight": state.weight,
        "cap_day": state.cap_day,
        "breaker": live.breaker,
        "rate": live.rate,
        "used_day": live.used_day,
        "reasons": list(state.reasons),
    }


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
