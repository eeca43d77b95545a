"""What a worker does beside its chunks: renew leases, show that it lives, mend counters after a loss."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

import msgspec
import structlog
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mailweir.contracts.heartbeat import Heartbeat, read_beat
from mailweir.contracts.policy import Policy, Source
from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock, since_boot
from mailweir.plumbing.database import DatabaseUnavailable
from mailweir.plumbing.policies import NoPolicy
from mailweir.spool.store import Spool
from workers.campaigns import Campaigns
from workers.connections import Connections
from workers.engine import Engine
from workers.engine_views import Views
from workers.ledger import recount
from workers.mx_notes import EVERY as MX_NOTES
from workers.policy import concurrency
from workers.prewarm import Prewarm
from workers.writer import outcomes_by_state

log = structlog.get_logger(__name__)

BEAT = 2.0
"""Real seconds between two heartbeats."""
RENEW_CONNECTIONS = 1.0
"""Real seconds between two renewals of the connection leases."""
BUSIEST = 10.0
"""Real seconds between two counts of what destinations are busy."""
LOOK = 0.5
"""Real seconds between two looks at epoch and snapshot."""
FORGET = 600.0
"""Real seconds after which a worker that is gone is taken off the list."""
SAY = 60.0
"""Real seconds between two lines of what was done."""
RECOUNT_LEASE = 60
"""Real seconds one worker has to recount."""


class Heart:
    """One per process; belongs to its event loop. Its tasks end only with :meth:`stop`."""

    def __init__(
        self,
        engine: Engine,
        views: Views,
        spool: Spool,
        redis: Redis,
        sync_redis: SyncRedis,
        executor: Executor,
        clock: Clock,
        *,
        queues: tuple[str, ...],
        region: str | None,
        lease: float,
        concurrency: int,
        reachable: Callable[[Source], bool],
        campaigns: Campaigns,
        prewarm: Prewarm,
        connections: Connections,
        trim: Callable[[str, str, int], None],
        note_mx: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._engine = engine
        self._views = views
        self._spool = spool
        self._redis = redis
        self._sync = sync_redis
        self._executor = executor
        self._clock = clock
        self._queues = queues
        self._region = region
        self._lease = lease
        self._concurrency = concurrency
        self._reachable = reachable
        self._campaigns = campaigns
        self._prewarm = prewarm
        self._connections = connections
        self._trim = trim
        self._note_mx = note_mx
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False
        self.alive = 1  # workers heard of, this one included
        self._born = time.monotonic()
        self._said: dict[str, float] = {}  # outcomes of the last line
        self._rank = 0  # of this worker among them, by name

    async def start(self) -> None:
        """Look once, so that the first chunk finds everything, then keep beating."""
        try:
            await self._look()
            await self._campaigns.look()
        except (RedisError, DatabaseUnavailable) as error:
            log.warning("started without redis or database", error=type(error).__name__)
        for every, what in (
            (self._lease / 3, self._renew),
            (BEAT, self._beat),
            (LOOK, self._look),
            (LOOK, self._look_at_campaigns),
            (RENEW_CONNECTIONS, self._renew_connections),
            (BUSIEST, self._prewarm.flush),
            (MX_NOTES, self._look_at_mx),
            (SAY, self._say),
        ):
            self._tasks.append(asyncio.create_task(self._every(every, what)))
        self._tasks.append(asyncio.create_task(self._warm()))

    async def stop(self) -> None:
        """End, and say so."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._say()
        try:
            await self._campaigns.look()
            await self._prewarm.flush()
            await self._redis.hdel(keys.WORKERS, self._engine.name)
        except RedisError as error:
            log.warning("heartbeat not removed; it grows old", error=type(error).__name__)

    async def _say(self) -> None:
        """What became of the jobs since the last line, for whoever reads the log."""
        said, self._said = self._said, outcomes_by_state()
        new = {state: int(count - said.get(state, 0)) for state, count in self._said.items()}
        if any(new.values()):
            counts = {state: count for state, count in new.items() if count}
            log.info("worked", chunks_now=len(self._engine.live), **counts)

    async def _renew(self) -> None:
        """One call for all chunks. A chunk that is no longer ours starts no more jobs."""
        live = dict(self._engine.live)
        if not live:
            return
        loop = asyncio.get_running_loop()
        leased = since_boot() + self._lease
        ours = await loop.run_in_executor(
            self._executor, self._spool.renew, list(live), self._engine.name, self._lease
        )
        for chunk_id, run in live.items():
            if chunk_id in ours:
                run.leased = leased
            elif chunk_id in self._engine.live:
                log.warning("lease lost", chunk=chunk_id)
                run.stopped = True
                run.leased = 0.0

    def part(self, cap: int) -> int:
        """This worker's part of a number that all workers alive share; the parts add up to it."""
        # whoever started with it is heard of at its second beat
        young = time.monotonic() - self._born < 2 * BEAT
        return concurrency.part(cap, self._rank, self.alive, young=young)

    async def _warm(self) -> None:
        """Once, beside the first chunks: a slow remote must not keep the worker from starting."""
        loop = asyncio.get_running_loop()
        try:
            policy = await loop.run_in_executor(self._executor, self._views.policy)
            await self._prewarm.start(policy)
        except (DatabaseUnavailable, NoPolicy) as error:
            log.warning("nothing prewarmed", error=type(error).__name__)
        except Exception:
            log.exception("prewarming failed")

    async def _look_at_mx(self) -> None:
        await self._note_mx()

    async def _look_at_campaigns(self) -> None:
        await self._campaigns.look()

    async def _renew_connections(self) -> None:
        await self._connections.renew(self._trim)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        policy = await loop.run_in_executor(self._executor, self._views.policy)
        reached = {s.name for s in policy.sources.values() if self._reachable(s)}
        body = msgspec.json.encode(
            Heartbeat(
                at=time.time(),
                queues=self._queues,
                sources=tuple(sorted(reached)),
                unreachable=tuple(sorted(policy.sources.keys() - reached)),
                region=self._region,
                pid=os.getpid(),
                concurrency=self._concurrency,
                chunks=len(self._engine.live),
                stopping=self._engine.stopping,
            )
        )
        await self._redis.hset(keys.WORKERS, self._engine.name, body)
        beats = await self._redis.hgetall(keys.WORKERS)
        real = time.time()
        old = []
        alive = {self._engine.name}
        for key, text in beats.items():
            name = key.decode() if isinstance(key, bytes) else key
            beat = read_beat(text)
            if beat is None or not beat.alive(real - FORGET):
                old.append(name)  # one we cannot read is nobody's, or is said again
            elif beat.alive(real):
                alive.add(name)
        self.alive = len(alive)
        self._rank = sorted(alive).index(self._engine.name)
        if old:
            await self._redis.hdel(keys.WORKERS, *old)

    async def _look(self) -> None:
        await self._views.look()
        await self._mend()

    async def _mend(self) -> None:
        """After a new epoch, or none: one worker recounts; until then nothing counted is granted."""
        if self._views.epoch is None:
            await self._redis.set(keys.EPOCH, secrets.token_hex(8), nx=True)
            await self._views.look()
        epoch = self._views.epoch
        ready = await self._redis.get(keys.COUNTERS_READY)
        if epoch is None or ready in (epoch, epoch.encode()):
            return
        if not await self._redis.set(
            keys.leader("recount"), self._engine.name, nx=True, ex=RECOUNT_LEASE
        ):
            return
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._executor, self._recount, epoch)
        finally:
            await self._redis.delete(keys.leader("recount"))

    def _recount(self, epoch: str) -> None:
        try:
            policy = self._views.policy()
        except NoPolicy:
            policy = Policy()  # no rule has a daily limit then
        recount(
            self._spool.database,
            self._sync,
            epoch=epoch,
            snapshot=self._views.snapshot,
            policy=policy,
            clock=self._clock,
        )

    async def _every(self, seconds: float, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do it again and again; a server that is away is tried again at the next turn.

        The flag is asked beside the cancellation, which redis-py may swallow."""
        while not self._stopped:
            try:
                await what()
            except (RedisError, DatabaseUnavailable, NoPolicy) as error:
                log.warning("heartbeat missed", what=what.__name__, error=type(error).__name__)
            except Exception:
                log.exception("heartbeat failed", what=what.__name__)
            if not self._stopped:
                await asyncio.sleep(seconds * random.uniform(0.9, 1.0))
