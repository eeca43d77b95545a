"""What the routers know of recipients' domains: provider and geo zone of their MX, from the workers' notes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import structlog
from redis import Redis
from redis.exceptions import RedisError

from mailweir.plumbing import mx

log = structlog.get_logger(__name__)

KEPT = 30.0  # real seconds a note read is used before it is read again
REMEMBERED = 50_000


class Places(NamedTuple):
    """Domains of a batch. What is in neither mapping nor ``unplaced`` is simply not known."""

    providers: Mapping[str, str]
    zones: Mapping[str, str]
    unplaced: frozenset[str]  # zone being found out: workers were asked


NOWHERE = Places({}, {}, frozenset())


class MxReader:
    """Remembers notes for a while. ``geo``: workers look up zones, so a zone not noted will come."""

    def __init__(self, client: Redis, geo: bool) -> None:
        self._redis = client
        self._geo = geo
        self._known: dict[str, tuple[float, mx.MxNote]] = {}

    def places(self, domains: Iterable[str], ask_zones: bool) -> Places:
        """The places of these domains. ``ask_zones``: rules depend on zones, so missing ones are asked
        for. Without Redis what is remembered serves, however old."""
        wanted = set(domains)
        now = time.monotonic()
        stale = [d for d in wanted if d not in self._known or self._known[d][0] < now - KEPT]
        asking = ask_zones and self._geo
        try:
            found = mx.read(self._redis, stale, time.time())
            missing = [d for d in stale if d not in found and d not in self._known]
            if asking:
                mx.ask(self._redis, missing)
        except RedisError as error:
            log.warning("MX notes cannot be read", error=type(error).__name__)
            found = {}
        if len(self._known) + len(found) > REMEMBERED:
            self._known.clear()
        self._known.update((domain, (now, note)) for domain, note in found.items())
        notes = {d: self._known[d][1] for d in wanted if d in self._known}
        return Places(
            {d: note.provider for d, note in notes.items() if note.provider},
            {d: note.zone for d, note in notes.items() if note.zone},
            frozenset(wanted - notes.keys()) if asking else frozenset(),
        )
