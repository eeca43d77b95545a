"""The per-recipient limit (S21): at most so many jobs to one address in a span, over all routers.

Redis holds keyed hashes, never addresses. One call reserves places for a whole batch. A new epoch (lost
Redis) is recounted from the attempts of the last hour before anything is let through.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import redis
import structlog
from redis.exceptions import RedisError

from mailweir.contracts.policy import Throttle
from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.install import keyed_hash
from router.policy.recipients import REFUSED

MOST_HELD = 20
"""Jobs held per recipient; what comes on top is refused (S21)."""

COUNTED = 3600.0
"""Policy seconds that are recounted after a lost Redis."""

KEPT = 30 * 86_400_000
"""Real milliseconds a recipient's places are kept at most."""

TRUST = 1.0  # real seconds between two looks whether this is still the same Redis

log = structlog.get_logger(__name__)
_SCRIPT = Path(__file__).with_name("recipients.lua").read_text()


class EpochLost(RedisError):
    """Redis has no epoch: its state is gone and nobody has begun a new one."""


class Place(NamedTuple):
    """How long a job must wait, policy seconds; ``refused``: too many wait for this recipient already."""

    wait: float
    refused: bool


AT_ONCE = Place(0.0, False)


class Want(NamedTuple):
    """A job that asks for a place."""

    job_id: int
    recipient_key: str  # canonical address
    limit: Throttle


class RecipientLimit:
    """Reserves places in Redis."""

    def __init__(
        self,
        client: redis.Redis,
        clock: Clock,
        secret: bytes,
        recent: Callable[[float], dict[str, list[float]]],
    ) -> None:
        """``recent(since)``: times of attempts by recipient key, from the spool."""
        self._recent = recent
        self._trusted_until = 0.0
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
        self._ensure()
        alike: dict[Throttle, list[int]] = defaultdict(list)
        for number, want in enumerate(wants):
            alike[want.limit].append(number)
        found = [AT_ONCE] * len(wants)
        for limit, numbers in alike.items():
            some = [wants[number] for number in numbers]
            answer = cast(
                list[Any],
                self._script(
                    keys=[self.key(want.recipient_key) for want in some],
                    args=[
                        *self._clock.lua_args,
                        limit.count,
                        limit.per,
                        MOST_HELD,
                        *(want.job_id for want in some),
                    ],
                ),
            )
            for index, wait in zip(answer[1::2], answer[2::2], strict=True):
                seconds = float(wait)
                found[numbers[index - 1]] = Place(max(0.0, seconds), seconds == REFUSED)
        return found

    def _ensure(self) -> None:
        """Recount once where Redis lost its state: nothing is granted on counts that are gone."""
        if time.monotonic() < self._trusted_until:
            return
        epoch, ready = cast(list[bytes | None], self._redis.mget(keys.EPOCH, keys.RECIPIENTS_READY))
        if epoch is None:
            raise EpochLost("no epoch yet: a worker begins one")
        if epoch != ready:
            count = self._recount()
            self._redis.set(keys.RECIPIENTS_READY, epoch)
            log.info("recipient limits recounted", attempts=count)
        self._trusted_until = time.monotonic() + TRUST

    def _recount(self) -> int:
        """Places from the attempts of the last hour (an attempt counts like a job: on the safe side)."""
        count = 0
        pipe = self._redis.pipeline(transaction=False)
        keep = min(int(self._clock.real(COUNTED) * 1000) + 1000, KEPT)
        for recipient_key, times in self._recent(self._clock.now() - COUNTED).items():
            entries = " ".join(f"-{n} {at:.6f}" for n, at in enumerate(sorted(times)))
            pipe.set(self.key(recipient_key), entries, px=keep)
            count += len(times)
            if len(pipe) >= 1000:
                pipe.execute()
        pipe.execute()
        return count
