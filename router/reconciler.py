"""Frees what was lost on the way: leases that ran out, chunks the broker lost.

A lost lease: jobs marked *in data* become uncertain (the remote may have them), the others are due
again. A lost chunk: only one that is provably gone (``Spool.lost_chunks``) is dispatched again; a chunk
that merely waits in a slow queue never is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import redis
import structlog
from redis.exceptions import RedisError

from mailweir.contracts.job import Job
from mailweir.contracts.policy import Policy, Retry
from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.publisher import BrokerUnavailable, Publisher
from mailweir.plumbing.redis import epoch
from mailweir.plumbing.settings import RouterSettings
from mailweir.spool.store import ExpiredLease, Spool

log = structlog.get_logger(__name__)

UNCERTAIN_WAIT = 900.0
"""Policy seconds before an uncertain job is sent again (N41): a DSN or webhook may settle it first."""


def uncertain_due(job: Job, retry: Retry, now: float) -> float | None:
    """When an uncertain job is sent again: not before 15 min, at once when it expires sooner, or never."""
    if retry.uncertain != "resend":
        return None
    end = job.expires_at if job.expires_at is not None else job.accepted_at + retry.max_age
    due = now + UNCERTAIN_WAIT
    return due if due < end else now


class Reconciler:
    """Looks every few seconds; any number of routers may run one."""

    def __init__(
        self,
        spool: Spool,
        publisher: Publisher,
        client: redis.Redis,
        policy: Callable[[], Policy],
        clock: Clock,
        settings: RouterSettings,
        queues: Callable[[], Sequence[str]],
        max_crashes: int,
    ) -> None:
        self._spool = spool
        self._publisher = publisher
        self._redis = client
        self._policy = policy
        self._clock = clock
        self._settings = settings
        self._queues = queues
        self._max_crashes = max_crashes
        self._empty_since: dict[str, float] = {}
        self._warned = False
        self._next = 0.0

    def turn(self) -> int:
        """Look, if it is time; how many jobs were freed."""
        now = time.monotonic()
        if now < self._next:
            return 0
        self._next = now + self._settings.reconcile_every
        return self._leases() + self._chunks()

    def _leases(self) -> int:
        freed = 0
        for lease in self._spool.expired_leases():
            marked = self._in_data(lease)
            jobs = [job for job in map(self._spool.job, marked) if job is not None]
            policy, now = self._policy(), self._clock.now()
            uncertain = {
                job.id: uncertain_due(job, policy.bucket(job.bucket).retry, now) for job in jobs
            }
            due = [job_id for job_id in lease.jobs if job_id not in uncertain]
            self._spool.free(lease.chunk_id, uncertain, due, now, self._max_crashes)
            freed += len(lease.jobs)
            log.warning("lease lost", jobs=len(lease.jobs), uncertain=len(uncertain))
        return freed

    def _in_data(self, lease: ExpiredLease) -> list[int]:
        """Jobs whose body may have reached the remote. After a lost epoch, or without Redis, all count:
        better uncertain than twice."""
        try:
            if lease.epoch is None or epoch(self._redis) != lease.epoch:
                return list(lease.jobs)
            marks = self._redis.hkeys(keys.in_data(lease.chunk_id))
        except RedisError:
            return list(lease.jobs)
        marked = {int(mark) for mark in marks}
        return [job_id for job_id in lease.jobs if job_id in marked]

    def _chunks(self) -> int:
        # a region that left the policy still has the chunks it was given
        queues = tuple(dict.fromkeys((*self._queues(), *self._spool.window().queues)))
        try:
            depths = self._publisher.depths(queues)
        except BrokerUnavailable:
            self._empty_since.clear()  # nothing is proven while the broker does not answer
            return 0
        held = self._held()
        real = time.time()
        for queue, depth in depths.items():
            if depth or held is None or held.get(queue):
                self._empty_since.pop(queue, None)
            else:
                self._empty_since.setdefault(queue, real)
        lost = self._spool.lost_chunks(self._settings.lost_after, self._empty_since)
        if not lost:
            return 0
        count = self._spool.redispatch(lost, self._clock.now())
        log.warning("chunks lost by the broker", chunks=len(lost), jobs=count)
        return count

    def _held(self) -> dict[str, int] | None:
        """Chunks that workers hold, taken or not, per queue; None where nobody tells. RabbitMQ does only
        through its management API: without it an empty queue proves nothing, and a chunk is lost only
        when a later one was taken."""
        try:
            return self._publisher.held()
        except BrokerUnavailable as error:
            if not self._warned:
                log.warning("an empty queue proves nothing", why=str(error))
                self._warned = True
            return None
