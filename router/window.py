"""How much a bucket queue may hold: twice what its fleet finished in the last ten seconds.

So a route is seconds old when a worker acts on it, and a priority-1 job waits behind little. Workers
count finished jobs per queue and ten-second slot in Redis; without Redis the smallest window holds.
"""

from __future__ import annotations

import time

import redis
from redis.exceptions import RedisError

from mailweir.plumbing import keys

SLOT = 10.0  # real seconds, as workers count


def size(finished: float, smallest: int, largest: int) -> int:
    """Jobs a window may hold when its fleet finished so many in the last ten seconds."""
    return max(smallest, min(largest, int(2 * finished)))


def finished_lately(slots: dict[int, int], now: float) -> float:
    """Jobs finished in the last ten seconds, from the running slot and a share of the one before."""
    slot = int(now // SLOT)
    share = (now % SLOT) / SLOT
    running, before = slots.get(slot, 0), slots.get(slot - 1, 0)
    return running + before * (1 - share)


class Windows:
    """Window sizes by queue, looked up twice a second."""

    def __init__(self, client: redis.Redis, smallest: int, largest: int) -> None:
        self._redis = client
        self._smallest = smallest
        self._largest = largest
        self._next = 0.0
        self._finished: dict[str, float] = {}

    def finished(self, queues: tuple[str, ...]) -> dict[str, float]:
        """Jobs each queue's fleet finished in the last ten seconds."""
        now = time.monotonic()
        if now >= self._next or not self._finished:
            self._next = now + 0.5
            try:
                pipe = self._redis.pipeline(transaction=False)
                for queue in queues:
                    pipe.hgetall(keys.FLEET.format(queue=queue))
                found = pipe.execute()
            except RedisError:
                return dict.fromkeys(queues, 0.0)
            real = time.time()
            self._finished = {
                queue: finished_lately({int(k): int(v) for k, v in slots.items()}, real)
                for queue, slots in zip(queues, found, strict=True)
            }
        return self._finished

    def sizes(self, queues: tuple[str, ...]) -> dict[str, int]:
        """Jobs each queue may hold now."""
        finished = self.finished(queues)
        return {
            queue: size(finished.get(queue, 0.0), self._smallest, self._largest) for queue in queues
        }
