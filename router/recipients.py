"""The per-recipient limit (S21): at most so many jobs to one address in a span, over all routers.

Redis holds keyed hashes, never addresses. One call reserves places for a whole batch. A new epoch (lost
Redis) is recounted from the attempts of the last hour before anything is let through.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import redis

from mailweir.contracts.policy import Throttle
from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.install import keyed_hash

MOST_HELD = 20
"""Jobs held per recipient; what comes on top is refused (S21)."""

_SCRIPT = Path(__file__).with_name("recipients.lua").read_text()


class Place(NamedTuple):
    """When a job may go; ``refused``: too many wait for this recipient already."""

    at: float
    refused: bool


class Want(NamedTuple):
    """A job that asks for a place."""

    job_id: int
    recipient_key: str  # canonical address
    limit: Throttle


class RecipientLimit:
    """Reserves places in Redis."""

    def __init__(self, client: redis.Redis, clock: Clock, secret: bytes) -> None:
        self._redis = client
        self._clock = clock
        self._secret = secret
        self._script = client.register_script(_SCRIPT)

    def key(self, recipient_key: str) -> str:
        """The Redis key of a recipient."""
        return keys.recipient_limit(keyed_hash(self._secret, recipient_key))

    def reserve(self, wants: Sequence[Want]) -> list[Place]:
        """A place for each. Raises ``redis.exceptions.RedisError`` when Redis is away."""
        if not wants:
            return []
        args: list[Any] = [*self._clock.lua_args]
        for want in wants:
            args += [want.limit.count, want.limit.per, want.job_id, MOST_HELD]
        found = cast(
            list[bytes],
            self._script(keys=[self.key(want.recipient_key) for want in wants], args=args),
        )
        places = [float(value) for value in found]
        return [Place(place, place < 0) for place in places]

    def recount(self, sent: Iterable[tuple[str, int, float]]) -> int:
        """Rebuild from ``(recipient_key, job_id, at)`` of the last hour; how many were counted."""
        count = 0
        pipe = self._redis.pipeline(transaction=False)
        for recipient_key, job_id, at in sent:
            key = self.key(recipient_key)
            pipe.zadd(key, {str(job_id): at}, gt=True)
            pipe.expire(key, 2 * 3600)
            count += 1
            if count % 1000 == 0:
                pipe.execute()
        pipe.execute()
        return count
