"""Reads which sources the workers reach, and says so when one is cut off."""

from __future__ import annotations

import time

import redis
import structlog
from redis.exceptions import RedisError

from mailweir.contracts.heartbeat import read_beat
from mailweir.plumbing import keys
from router.policy.compiled import CompiledPolicy
from router.policy.reach import NOBODY, CutOff, Unreached, cut_off, fleets, unreached

log = structlog.get_logger(__name__)

LOOK_EVERY = 1.0  # real seconds; workers beat every two


class ReachReader:
    """The sources out of reach, at most :data:`LOOK_EVERY` old; without Redis none is known to be."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._next = 0.0
        self._found: Unreached = NOBODY
        self.fleets: frozenset[frozenset[str]] = frozenset()  # as old as the answer of ``get``
        self._seen: tuple[CompiledPolicy | None, Unreached] = (None, NOBODY)
        self._said: frozenset[CutOff] = frozenset()

    def get(self) -> Unreached:
        """Queue -> sources that no live worker of it reaches. The object is the same until a change."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LOOK_EVERY
            try:
                bodies = self._redis.hvals(keys.WORKERS)
            except RedisError:
                bodies = []
            beats = [beat for beat in map(read_beat, bodies) if beat is not None]
            found = unreached(beats, time.time())
            if found != self._found:
                self._found = found
            self.fleets = fleets(beats, time.time())
        return self._found

    def watch(self, compiled: CompiledPolicy) -> Unreached:
        """:meth:`get`, and an alarm in the log for each source the policy needs that nobody reaches any
        more."""
        found = self.get()
        if self._seen != (compiled, found):
            self._seen = (compiled, found)
            new = frozenset(cut_off(compiled, found))
            for queue, source in sorted(new - self._said):
                log.error("no live worker reaches a source", queue=queue, source=source)
            for queue, source in sorted(self._said - new):
                log.info("a source is reached again", queue=queue, source=source)
            self._said = new
        return found
