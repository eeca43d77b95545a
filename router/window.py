"""How much a bucket queue may hold: what its fleet finishes in a few seconds (``router.window_seconds``).

So a route is seconds old when a worker acts on it, a priority-1 job waits behind little, and mail that
leaves a failing path stands behind no more than that when it is routed anew (S35: 5 s). Workers count
finished jobs per queue and slot of time in Redis; without Redis the smallest window holds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import redis
from redis.exceptions import RedisError

from mailweir.plumbing import keys
from mailweir.plumbing.settings import RouterSettings

LOOK_BACK = 10.0  # real seconds of a rate as it is shown
NEWEST = 0.2  # share of the newest batch in what is known of the mix
RARE = 0.01  # a queue with a smaller share of the jobs does not bind
WORTH = 0.05  # share of its window that must be free before a bucket is dispatched again
PROBE = 10  # jobs looked at while the mix says that there is no room: it may have changed
PROBE_EVERY = 0.5  # real seconds between two such looks


def finished_lately(slots: Mapping[int, int], now: float, seconds: float) -> float:
    """Jobs finished in the last so many seconds: of the slot in which they begin, a share counts."""
    first, last = (now - seconds) / keys.FLEET_SLOT, int(now // keys.FLEET_SLOT)
    partly = int(first // 1)
    whole = sum(slots.get(slot, 0) for slot in range(partly + 1, last + 1))
    return whole + slots.get(partly, 0) * (partly + 1 - first)


class Mix:
    """Which queues a bucket's jobs go to, learnt from its batches: a job claimed and decided for a queue
    without room was work for nothing."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}
        self._probed = 0.0

    def fits(self, room: Mapping[str, int], sizes: Mapping[str, int], most: int, now: float) -> int:
        """Jobs to claim, at most ``most``, so that few are decided for a queue that has no room. None while
        little is free of a large window (``sizes``; a queue that is not named is not made to wait): a chunk
        of a few jobs costs a worker as much as a full one. ``now``: real monotonic seconds."""
        total = sum(room.values())
        shares = [(q, share) for q, share in self._shares.items() if share >= RARE and q in room]
        bound = [(room[q] / share, q) for q, share in shares]
        fit, queue = min(bound, default=(float(total), ""))
        if fit >= max(1.0, min(most, WORTH * sizes.get(queue, 0))):
            self._probed = now
            return min(total, most, int(fit))
        if now - self._probed < PROBE_EVERY:
            return 0
        self._probed = now
        return min(total, PROBE)

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

    def __init__(self, client: redis.Redis, settings: RouterSettings) -> None:
        self._redis = client
        self._settings = settings
        self._next = 0.0
        self._queues: tuple[str, ...] = ()  # every queue asked about: buckets ask one by one
        self._slots: dict[str, dict[int, int]] = {}
        self._looked = 0.0  # real time of the look

    def finished(self, queues: tuple[str, ...], seconds: float = LOOK_BACK) -> dict[str, float]:
        """Jobs each queue's fleet finished in the last so many real seconds."""
        now = time.monotonic()
        if now >= self._next or not self._slots.keys() >= set(queues):
            self._next = now + 0.5
            self._queues = tuple(dict.fromkeys((*self._queues, *queues)))
            try:
                pipe = self._redis.pipeline(transaction=False)
                for queue in self._queues:
                    pipe.hgetall(keys.FLEET.format(queue=queue))
                found = pipe.execute()
            except RedisError:
                return dict.fromkeys(queues, 0.0)
            self._looked = time.time()
            self._slots = {
                queue: {int(slot): int(jobs) for slot, jobs in slots.items()}
                for queue, slots in zip(self._queues, found, strict=True)
            }
        return {q: finished_lately(self._slots[q], self._looked, seconds) for q in queues}

    def sent_back(self, queues: tuple[str, ...], slot: int) -> dict[str, int]:
        """Jobs of these queues that a throttle sent back in a slot, by lane; none while Redis is away."""
        back: dict[str, int] = {}
        try:
            pipe = self._redis.pipeline(transaction=False)
            for queue in queues:
                pipe.hgetall(keys.SENT_BACK.format(queue=queue, slot=slot))
            for lanes in pipe.execute():
                for lane, jobs in lanes.items():
                    back[lane.decode()] = back.get(lane.decode(), 0) + int(jobs)
        except RedisError:
            return {}
        return back

    def sizes(self, queues: tuple[str, ...]) -> dict[str, int]:
        """Jobs each queue may hold now: what its fleet finished in ``window_seconds``, within bounds."""
        smallest, largest = self._settings.window_min, self._settings.window_max
        finished = self.finished(queues, self._settings.window_seconds)
        return {queue: max(smallest, min(largest, int(jobs))) for queue, jobs in finished.items()}
