"""Reads the routing snapshot in force: cheap to ask, at most half a second old."""

from __future__ import annotations

import time

import msgspec
import redis
from redis.exceptions import RedisError

from mailweir.contracts.snapshot import Snapshot
from mailweir.plumbing import keys

LOOK_EVERY = 0.5  # real seconds


class SnapshotReader:
    """The last snapshot seen; without reputation or Redis it stays in force (caps hold, weights freeze)."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._decode = msgspec.json.Decoder(Snapshot).decode
        self._version: object = None
        self._next = 0.0
        self._snapshot = Snapshot(version=0, created_at=0.0, policy_version=0, paths={})

    def get(self) -> Snapshot:
        """The snapshot in force; version 0 before reputation has published one."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LOOK_EVERY
            try:
                version = self._redis.get(keys.SNAPSHOT_VERSION)
                if version is not None and version != self._version:
                    body = self._redis.get(keys.SNAPSHOT)
                    if body is not None:
                        self._snapshot = self._decode(body)
                        self._version = version
            except RedisError:
                return self._snapshot  # the last one stays in force
        return self._snapshot
