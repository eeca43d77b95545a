"""Campaigns whose mail bounces are slowed, over all workers: counted here, looked up before sending."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock

log = structlog.get_logger(__name__)

KEEP = 86400
"""Real seconds a campaign is remembered after its last outcome, and the slowed ones together."""


def name_of(tenant: str, campaign: str) -> str:
    """How a tenant's campaign is named here."""
    return f"{tenant}|{campaign}"


class Campaigns:
    """One per process; belongs to its event loop. ``slowed``: name -> jobs a policy second."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self._redis = redis
        self._clock = clock
        self._text = Path(__file__).with_name("campaigns.lua").read_text()
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.slowed: dict[str, float] = {}

    def note(self, name: str, bounced: bool) -> None:
        """A job of the campaign was sent, or bounced."""
        self._counts[name][bounced] += 1

    async def look(self) -> None:
        """Book what was noted, then see which campaigns are slowed. Raises Redis' errors; what could
        not be booked is booked next time."""
        if self._counts:
            counts, self._counts = self._counts, defaultdict(lambda: [0, 0])
            try:
                await self._book(counts)
            except RedisError:
                for name, (sent, bounced) in counts.items():
                    self._counts[name][0] += sent
                    self._counts[name][1] += bounced
                raise
        found = await self._redis.hgetall(keys.CAMPAIGNS_SLOWED)
        slowed = {
            name.decode() if isinstance(name, bytes) else name: float(rate)
            for name, rate in found.items()
        }
        for name in slowed.keys() - self.slowed.keys():
            log.warning("campaign slowed: too many bounces", campaign=name, rate=slowed[name])
        self.slowed = slowed

    async def _book(self, counts: dict[str, list[int]]) -> None:
        origin, speed = self._clock.lua_args
        pipe = self._redis.pipeline(transaction=False)
        for name, (sent, bounced) in counts.items():
            pipe.eval(
                self._text, 2, keys.campaign(name), keys.CAMPAIGNS_SLOWED,
                origin, speed, name, str(sent), str(bounced), str(KEEP),
            )  # fmt: skip
        await pipe.execute()
