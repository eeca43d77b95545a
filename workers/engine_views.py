"""What a worker follows: policy, routing snapshot, providers' limits, this Redis' life."""

from __future__ import annotations

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mailweir.contracts.policy import Policy, Provider
from mailweir.contracts.snapshot import OTHER, Snapshot
from mailweir.mail.providers import default_providers
from mailweir.plumbing import keys
from mailweir.plumbing.policies import PolicyWatch
from mailweir.plumbing.redis import epoch_async

log = structlog.get_logger(__name__)

OTHERS_KEPT = 10_000
"""Providers no list names whose limits are remembered."""


class Views:
    """One per process. ``policy`` may ask SQL: call it in a thread; the rest is a look at memory."""

    def __init__(self, watch: PolicyWatch, redis: Redis) -> None:
        self._watch = watch
        self._redis = redis
        self._decode = msgspec.json.Decoder(Snapshot).decode
        self._version: bytes | str | None = None
        self._defaults = default_providers()
        self._others_of: Policy | None = None
        self._others: dict[str, Provider] = {}  # that no list names, by that policy
        self.snapshot = Snapshot(version=0, created_at=0.0, policy_version=0, paths={})
        self.epoch: str | None = None

    def policy(self) -> Policy:
        """The policy in force, at most 2 s old. Raises :class:`mailweir.plumbing.policies.NoPolicy`."""
        return self._watch.get()

    def provider(self, policy: Policy, name: str) -> Provider:
        """A provider's limits: the policy's, else those of the data file, else of ``other``."""
        found = policy.providers.get(name) or self._defaults.get(name)
        if found is not None:
            return found
        if policy is not self._others_of or len(self._others) > OTHERS_KEPT:
            self._others_of, self._others = policy, {}
        found = self._others.get(name)
        if found is None:
            other = policy.providers.get(OTHER)
            found = msgspec.structs.replace(other, name=name) if other else Provider(name)
            self._others[name] = found
        return found

    async def look(self) -> None:
        """Follow epoch and snapshot; without Redis the last ones stay in force."""
        try:
            self.epoch = await epoch_async(self._redis)
            version = await self._redis.get(keys.SNAPSHOT_VERSION)
            if version is None or version == self._version:
                return
            body = await self._redis.get(keys.SNAPSHOT)
        except RedisError:
            return
        if body is None:
            return
        try:
            self.snapshot, self._version = self._decode(body), version
        except msgspec.DecodeError as error:
            log.error("routing snapshot unreadable, the last one stays", error=str(error))
