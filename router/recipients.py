"""The per-recipient limit (S21): at most so many jobs to one address in a span, over all routers.

Redis holds keyed hashes, never addresses. One call reserves places for a whole batch. A new epoch (lost
Redis) is recounted from the attempts of the last hour, and what is on its way, before anything is let
through: the script that reserves looks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from operator import itemgetter
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

TRIES = 3  # recounts in a row, before a Redis that loses its state again and again counts as away

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
        recent: Callable[[float, float], dict[str, dict[int, float]]],
    ) -> None:
        """``recent(since, now)``: by recipient key the jobs tried since, each with its last attempt's
        time, from the spool; what is on its way counts as made ``now``."""
        self._recent = recent
        self._redis = client
        self._clock = clock
        self._secret = secret
        self._script = client.register_script(_SCRIPT)

    def key(self, recipient_key: str) -> str:
        """The Redis key of a recipient."""
        return keys.recipient_limit(keyed_hash(self._secret, recipient_key))

    def reserve(self, wants: Sequence[Want]) -> list[Place]:
        """A place for each. Raises ``redis.exceptions.RedisError`` when Redis is away."""
        alike: dict[Throttle, list[int]] = defaultdict(list)
        for number, want in enumerate(wants):
            alike[want.limit].append(number)
        found = [AT_ONCE] * len(wants)
        for limit, numbers in alike.items():
            answer = self._ask(limit, [wants[number] for number in numbers])
            for index, wait in zip(answer[1::2], answer[2::2], strict=True):
                seconds = float(wait)
                found[numbers[index - 1]] = Place(max(0.0, seconds), seconds == REFUSED)
        return found

    def _ask(self, limit: Throttle, wants: Sequence[Want]) -> list[Any]:
        """The script's answer; where this Redis lost its state, after a recount."""
        names = [keys.EPOCH, keys.RECIPIENTS_READY]
        names += [self.key(want.recipient_key) for want in wants]
        numbers = [limit.count, limit.per, MOST_HELD, *(want.job_id for want in wants)]
        for _ in range(TRIES):
            answer = cast(
                list[Any], self._script(keys=names, args=[*self._clock.lua_args, *numbers])
            )
            if answer:
                return answer
            epoch = cast(bytes | None, self._redis.get(keys.EPOCH))
            if epoch is None:
                raise EpochLost("no epoch yet: a worker begins one")
            count = self._recount()
            self._redis.set(keys.RECIPIENTS_READY, epoch)
            log.info("recipient limits recounted", jobs=count)
        raise EpochLost("lost again while its places were recounted")

    def _recount(self) -> int:
        """Places of the jobs tried in the last hour: one a job, under its name, so that one that comes
        back (its chunk was lost with the queue) finds its own place and takes no second.

        Two routers may count at once; the later one changes no place that was reserved meanwhile."""
        count = 0
        pipe = self._redis.pipeline(transaction=False)
        keep = min(int(self._clock.real(COUNTED) * 1000) + 1000, KEPT)
        now = self._clock.now()
        for recipient_key, jobs in self._recent(now - COUNTED, now).items():
            earliest_first = sorted(jobs.items(), key=itemgetter(1))
            entries = " ".join(f"{job} {at:.6f}" for job, at in earliest_first)
            pipe.set(self.key(recipient_key), entries, px=keep, nx=True)
            count += len(jobs)
            if len(pipe) >= 1000:
                pipe.execute()
        pipe.execute()
        return count
