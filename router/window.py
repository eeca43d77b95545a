"""How much a bucket queue may hold: twice what its fleet finished in the last ten seconds.

So a route is seconds old when a worker acts on it, and a priority-1 job waits behind little. Workers
count finished jobs per queue and ten-second slot in Redis; without Redis the smallest window holds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import redis
from redis.exceptions import RedisError

from mailweir.plumbing import keys

SLOT = 10.0  # real seconds, as workers count
NEWEST = 0.2  # share of the newest batch in what is known of the mix
RARE = 0.01  # a queue with a smaller share of the jobs does not bind
PROBE = 10  # jobs looked at while the mix says that there is no room: it may have changed


def size(finished: float, smallest: int, largest: int) -> int:
    """Jobs a window may hold when its fleet finished so many in the last ten seconds."""
    return max(smallest, min(largest, int(2 * finished)))


def finished_lately(slots: dict[int, int], now: float) -> float:
    """Jobs finished in the last ten seconds, from the running slot and a share of the one before."""
    slot = int(now // SLOT)
    share = (now % SLOT) / SLOT
    running, before = slots.get(slot, 0), slots.get(slot - 1, 0)
    return running + before * (1 - share)


class Mix:
    """Which queues a bucket's jobs go to, learnt from its batches: a job claimed and decided for a queue
    without room was work for nothing."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}

    def fits(self, room: Mapping[str, int]) -> int:
        """Jobs to claim so that few are decided for a queue that has no room."""
        total = sum(room.values())
        fit = min(
            (room.get(q, 0) / share for q, share in self._shares.items() if share >= RARE),
            default=total,
        )
        return min(total, max(PROBE, int(fit)))

    def learn(self, wanted: Mapping[str, int]) -> None:
        """After a batch: jobs by the queue they were decided for, with room or without."""
        total = sum(wanted.values())
        if not total:
            return
        newest = NEWEST if self._shares else 1.0
        for queue in {*self._shares, *wanted}:
            before = self._shares.get(queue, 0.0)
            self._shares[queue] = before + newest * (wanted.get(queue, 0) / total - before)


class Windows:
    """Window sizes by queue, looked up twice a second."""

    def __init__(self, client: redis.Redis, smallest: int, largest: int) -> None:
        self._redis = client
        self._smallest = smallest
        self._largest = largest
        self._next = 0.0
        self._queues: tuple[str, ...] = ()  # every queue asked about: buckets ask one by one
        self._finished: dict[str, float] = {}

    def finished(self, queues: tuple[str, ...]) -> dict[str, float]:
        """Jobs each queue's fleet finished in the last ten seconds."""
        now = time.monotonic()
        if now >= self._next or not self._finished.keys() >= set(queues):
            self._next = now + 0.5
            self._queues = tuple(dict.fromkeys((*self._queues, *queues)))
            try:
                pipe = self._redis.pipeline(transaction=False)
                for queue in self._queues:
                    pipe.hgetall(keys.FLEET.format(queue=queue))
                found = pipe.execute()
            except RedisError:
                return dict.fromkeys(queues, 0.0)
            real = time.time()
            self._finished = {
                queue: finished_lately({int(k): int(v) for k, v in slots.items()}, real)
                for queue, slots in zip(self._queues, found, strict=True)
            }
        return self._finished

    def sizes(self, queues: tuple[str, ...]) -> dict[str, int]:
        """Jobs each queue may hold now."""
        finished = self.finished(queues)
        return {
            queue: size(finished.get(queue, 0.0), self._smallest, self._largest) for queue in queues
        }
