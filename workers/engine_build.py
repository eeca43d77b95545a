"""Puts a worker's parts together, once per process, and takes them apart at the end."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from secrets import token_hex

import structlog

from mailweir.contracts.policy import Source
from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.geo import Geo
from mailweir.plumbing.install import derive, master_key
from mailweir.plumbing.policies import PolicyWatch
from mailweir.plumbing.redis import connect, connect_async
from mailweir.plumbing.secrets import Secrets
from mailweir.plumbing.settings import Settings
from mailweir.plumbing.telemetry import serve_metrics
from mailweir.plumbing.wire import wire_of
from mailweir.spool.store import Taking, open_spool
from suppression.guard import AsyncGuard
from workers.archive import Archive
from workers.campaigns import Campaigns
from workers.connections import Connections, RedisLeases
from workers.delivery.destinations import Destinations
from workers.delivery.dkim import Keyring
from workers.delivery.transport import Transport
from workers.engine import Engine, Parts
from workers.engine_compose import Composer
from workers.engine_gate import Gate
from workers.engine_heart import Heart
from workers.engine_views import Views
from workers.mx_notes import MxNotes
from workers.prewarm import Prewarm
from workers.throttle.shell import Throttle
from workers.writer import Writer

log = structlog.get_logger(__name__)

ADDRESS_TRUST = 10.0
"""Real seconds an answer serves whether an address is this machine's: addresses come and go."""

READERS = 4
"""Threads that take chunks, read contents and compose."""


class Reach:
    """Which sources this process can send from: local addresses, or anything by relay or proxy."""

    def __init__(self, region: str | None) -> None:
        self._region = region
        self._addresses: dict[str, tuple[float, bool]] = {}

    def __call__(self, source: Source) -> bool:
        """Whether this worker can carry the source's mail."""
        if source.region is not None and self._region is not None and source.region != self._region:
            return False
        if source.ip is None or source.proxy is not None:
            return True
        now = time.monotonic()
        looked, known = self._addresses.get(source.ip, (-ADDRESS_TRUST, False))
        if now - looked >= ADDRESS_TRUST:
            known = _is_local(source.ip)
            self._addresses[source.ip] = (now, known)
        return known


def _is_local(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


class Worker:
    """Everything one worker process holds. Build it in its event loop."""

    def __init__(
        self, settings: Settings, *, name: str, queues: tuple[str, ...], concurrency: int
    ) -> None:
        clock = Clock(settings.clock.origin, settings.clock.rate)
        self._redis, self._sync = connect_async(settings), connect(settings)
        self._spool = open_spool(settings)
        if not keys.has_transactional(queues):
            self._spool.database.give_way()
        self._writers = ThreadPoolExecutor(1, "writer")
        self._readers = ThreadPoolExecutor(READERS, "chunks")
        secret, secrets = master_key(settings), Secrets(settings)
        views = Views(PolicyWatch(self._spool.database, self._sync), self._redis)
        throttle = Throttle(self._redis, clock, share=lambda: self.heart.alive)
        self._writer = Writer(
            self._spool,
            throttle,
            self._redis,
            self._writers,
            lambda chunks: Taking(chunks, name, settings.worker.lease, views.epoch),
            rows=settings.worker.outcome_rows,
            delay=settings.worker.outcome_delay,
            unwritten=settings.worker.unwritten,
        )
        self._campaigns = Campaigns(self._redis, clock)
        self._connections = Connections(
            RedisLeases(self._redis),
            f"{name}:{token_hex(4)}",  # this life of the worker
            lambda cap: self.heart.part(cap),
        )
        self._transport = Transport(
            settings,
            secrets,
            on_connections=self._connections.changed,
            allowed=self._connections.allowed,
        )
        self._geo = None if settings.geo.database is None else Geo(settings.geo.database)
        self._mx_notes = MxNotes(self._redis, self._geo)
        self._destinations = Destinations(settings, learn=self._mx_notes.learn)
        reach = Reach(settings.region)
        self._prewarm = Prewarm(
            self._redis,
            views,
            self._destinations,
            self._connections,
            self._transport,
            reach,
            settings.smtp.prewarm,
        )
        self.engine = Engine(
            Parts(
                settings=settings,
                clock=clock,
                spool=self._spool,
                views=views,
                gate=Gate(
                    AsyncGuard(self._redis, self._spool.database, secret, clock),
                    throttle,
                    self._redis,
                    clock,
                    max_wait=settings.worker.max_wait,
                    slots=concurrency,
                    reroute=settings.worker.reroute,
                ),
                writer=self._writer,
                transport=self._transport,
                destinations=self._destinations,
                composer=Composer(Keyring(secrets), derive(secret, "verp")),
                connections=self._connections,
                campaigns=self._campaigns,
                prewarm=self._prewarm,
                archive=Archive(
                    limiter=throttle,
                    transport=self._transport,
                    destinations=self._destinations,
                    connections=self._connections,
                    views=views,
                    clock=clock,
                    wait=settings.worker.max_wait,
                    worker=name,
                ),
                executor=self._readers,
                reachable=reach,
            ),
            name,
        )
        self.heart = Heart(
            self.engine,
            views,
            self._spool,
            self._redis,
            self._sync,
            self._readers,
            clock,
            queues=queues,
            region=settings.region,
            lease=settings.worker.lease,
            concurrency=concurrency,
            reachable=reach,
            campaigns=self._campaigns,
            prewarm=self._prewarm,
            connections=self._connections,
            trim=self._transport.trim,
            note_mx=lambda: self._mx_notes.turn(self._destinations),
        )
        self._port = settings.worker.metrics_port
        self._names = ",".join(queues)

    async def start(self) -> None:
        """Before the first chunk."""
        serve_metrics(self._port)
        self._writer.start()
        await self.heart.start()
        log.info("worker ready", name=self.engine.name, queues=self._names)

    def stop(self) -> None:
        """A stop has begun: no job is started any more."""
        log.info("worker stopping", chunks=len(self.engine.live))
        self.engine.stop()

    async def close(self) -> None:
        """After the last chunk: write what waits, say goodbye, close."""
        await self._writer.stop()
        await self.heart.stop()
        await self._transport.close()
        await self._connections.release()
        log.info("worker stopped", name=self.engine.name)
        await self._destinations.close()
        await wire_of(self._redis).close()
        await self._redis.aclose()
        self._sync.close()
        if self._geo is not None:
            self._geo.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown(wait=True)
        self._spool.database.close()
