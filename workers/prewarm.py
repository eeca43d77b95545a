"""Connections opened before the first mail: to the busiest destinations of each source, at worker start.

Off by default (``smtp.prewarm``): a connection nobody uses costs the remote a slot. Which
destinations are busy is counted by all workers, per source and real day; a worker that starts opens
its connections within its leases, and they are closed like any others when they stay idle.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mailweir.contracts.policy import Policy, Source
from mailweir.contracts.route import Orders
from mailweir.plumbing import keys
from workers.connections import Connections
from workers.delivery.destinations import Destinations, DnsTrouble, NoMail
from workers.delivery.transport import Transport
from workers.engine_views import Views
from workers.policy.tls import tls_mode

log = structlog.get_logger(__name__)

BUSIEST = 5
"""Destinations per source."""
KEPT = 100
"""Destinations counted per source and day."""
DAY = 86400


class Prewarm:
    """One per process; belongs to its event loop. ``count``: connections to each destination, 0: off."""

    def __init__(
        self,
        redis: Redis,
        views: Views,
        destinations: Destinations,
        connections: Connections,
        transport: Transport,
        reachable: Callable[[Source], bool],
        count: int,
    ) -> None:
        self._redis = redis
        self._views = views
        self._destinations = destinations
        self._connections = connections
        self._transport = transport
        self._reachable = reachable
        self._count = count
        self._mails: dict[tuple[str, str], int] = defaultdict(int)

    def note(self, source: str, domain: str, mails: int) -> None:
        """So many mails go to a domain by a source."""
        if self._count:
            self._mails[source, domain] += mails

    async def flush(self) -> None:
        """Add what was noted to everybody's counts. Raises Redis' errors; what was noted is lost then."""
        if not self._mails:
            return
        mails, self._mails = self._mails, defaultdict(int)
        day = int(time.time() // DAY)
        pipe = self._redis.pipeline(transaction=False)
        for (source, domain), count in mails.items():
            pipe.zincrby(keys.busiest(source, day), count, domain)
        for source in {source for source, _ in mails}:
            pipe.zremrangebyrank(keys.busiest(source, day), 0, -KEPT - 1)
            pipe.expire(keys.busiest(source, day), 2 * DAY)
        await pipe.execute()

    async def start(self, policy: Policy) -> int:
        """Open connections to the busiest destinations; how many there are now."""
        if not self._count:
            return 0
        day = int(time.time() // DAY)
        opened = 0
        for source in policy.sources.values():
            if source.kind not in ("mx", "relay") or not self._reachable(source):
                continue
            try:
                found = await self._redis.zrevrange(keys.busiest(source.name, day), 0, BUSIEST - 1)
                found = found or await self._redis.zrevrange(
                    keys.busiest(source.name, day - 1), 0, BUSIEST - 1
                )
            except RedisError as error:
                log.warning("nothing prewarmed", error=type(error).__name__)
                return opened
            opened += sum(
                await asyncio.gather(*(self._open(policy, source, _text(d)) for d in found))
            )
        if opened:
            log.info("connections prewarmed", connections=opened)
        return opened

    async def _open(self, policy: Policy, source: Source, domain: str) -> int:
        try:
            place = await self._destinations.resolve(domain, source)
        except (NoMail, DnsTrouble):
            return 0
        provider = self._views.provider(policy, place.provider)
        cap = source.connections or provider.connections
        async with self._connections.using(
            source.name, place.site, min(self._count, cap), cap, 0.0, lambda: False
        ) as allowed:
            if not allowed:
                return 0
            return await self._transport.prewarm(
                source,
                place,
                provider=provider,
                tls=tls_mode(policy, source, provider, Orders()),
                count=allowed,
            )


def _text(member: object) -> str:
    return member.decode() if isinstance(member, bytes) else str(member)
