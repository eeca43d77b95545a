"""Tells the routers what the MX of a domain says, and resolves the domains they ask about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

import structlog
from redis.asyncio import Redis

from mailweir.plumbing import keys, mx
from mailweir.plumbing.geo import Geo
from workers.delivery.destinations import Destinations, DnsTrouble, NoMail
from workers.delivery.types import Destination

log = structlog.get_logger(__name__)

EVERY = 0.25  # real seconds between two turns
AT_ONCE = 50  # domains resolved for routers at a time
REMEMBERED = 50_000  # domains this process knows it has written


class MxNotes:
    """One per process; belongs to its event loop. ``learn`` is called where domains are resolved."""

    def __init__(
        self, redis: Redis, geo: Geo | None, real: Callable[[], float] = time.time
    ) -> None:
        self._redis = redis
        self._geo = geo
        self._real = real
        self._fresh: dict[str, mx.MxNote] = {}
        self._written: dict[str, mx.MxNote] = {}
        self._hash = ""
        self._size = 0

    def learn(self, domain: str, destination: Destination | None) -> None:
        """Note where a domain's mail goes; None: it takes no mail."""
        if len(self._fresh) < REMEMBERED:
            note = mx.MxNote("", "", "") if destination is None else self._note(destination)
            self._fresh[domain] = note

    def _note(self, destination: Destination) -> mx.MxNote:
        zone = ""
        if self._geo is not None:
            zones = (self._geo.zone(hop.address or hop.host) for hop in destination.hosts)
            zone = next(filter(None, zones), "")
        return mx.MxNote(destination.provider, destination.site, zone)

    async def turn(self, destinations: Destinations) -> None:
        """Write and resolve what has come up. Raises Redis' errors."""
        await self.flush()
        await self.answer(destinations)

    async def flush(self, most: int = mx.MOST) -> int:
        """Write what is new, while the hash holds less than ``most``; how many notes."""
        name = mx.hash_of(self._real())
        if name != self._hash:
            self._hash, self._size, self._written = name, 0, {}
        fresh, self._fresh = self._fresh, {}
        news = {d: note for d, note in fresh.items() if self._written.get(d) != note}
        if not news or self._size >= most:
            return 0
        pipe = self._redis.pipeline(transaction=False)
        pipe.hset(name, mapping={domain: mx.encode(note) for domain, note in news.items()})
        pipe.expire(name, 2 * mx.SPAN)
        pipe.hlen(name)
        self._size = int((await pipe.execute())[-1])
        if len(self._written) + len(news) > REMEMBERED:
            self._written = {}
        self._written.update(news)
        return len(news)

    async def answer(self, destinations: Destinations) -> int:
        """Resolve domains routers asked about; how many. One whose DNS fails is asked again by them."""
        popped = cast("list[bytes] | None", await self._redis.spop(keys.MX_ASKED, AT_ONCE))
        asked = [name.decode() for name in popped or ()]
        if asked:
            await asyncio.gather(*(self._resolve(destinations, domain) for domain in asked))
            await self.flush(2 * mx.MOST)  # a router waits for these
        return len(asked)

    @staticmethod
    async def _resolve(destinations: Destinations, domain: str) -> None:
        try:
            await destinations.resolve(domain)  # which tells ``learn``
        except NoMail:
            return
        except DnsTrouble as error:
            log.info("MX asked for cannot be resolved", domain=domain, why=str(error))
