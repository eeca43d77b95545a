"""May this address be mailed? Asked by the router, and by the worker right before RCPT (S60).

One round trip to Redis for a whole batch; where Redis is away, or its projection was built for another
epoch or is no longer kept, the tables are asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import prometheus_client
import redis
import redis.asyncio
from redis.exceptions import RedisError

from mailweir.mail.address import InvalidAddress, canonical
from mailweir.plumbing import keys
from mailweir.plumbing.clock import REAL, Clock
from mailweir.plumbing.database import Database
from mailweir.plumbing.install import derive, keyed_hash
from mailweir.plumbing.wire import wire_of
from suppression import store
from suppression.entries import Held, decode, verdict

AWAY = 0.5  # real seconds during which a Redis that failed is not asked again
MALFORMED = "malformed"
"""Reason for a recipient that is no address: it must not be mailed, whatever let it in."""

_ASKED = prometheus_client.Counter(
    "mailweir_suppression_asked", "Addresses asked about, by who answered.", ["by"]
)


class Ask(NamedTuple):
    """One question. ``sender`` (the envelope sender) is needed for pair entries only; ``key`` is the
    recipient's canonical form where the asker knows it."""

    recipient: str
    tenant: str
    bucket: str
    sender: str = ""
    key: str = ""


class _Questions:
    """A batch of asks as the keys to look under."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        self.asks = asks
        self.keys: list[tuple[str, ...]] = [_keys_of(ask) for ask in asks]

    def flat(self) -> list[str]:
        return list(dict.fromkeys(key for keys_ in self.keys for key in keys_))

    def answers(self, held: dict[str, list[Held]], now: float) -> list[str | None]:
        out: list[str | None] = []
        for ask, places in zip(self.asks, self.keys, strict=True):
            if not places:
                out.append(MALFORMED)
                continue
            found = [entry for key in places for entry in held.get(key, ())]
            out.append(verdict(found, ask.tenant, ask.bucket, now) if found else None)
        return out


_canonical_sender = lru_cache(maxsize=1024)(canonical)  # few send to many


def _keys_of(ask: Ask) -> tuple[str, ...]:
    try:
        recipient = ask.key or canonical(ask.recipient)
    except InvalidAddress:
        return ()
    places = (recipient, "@" + recipient.rpartition("@")[2])
    if not ask.sender:
        return places
    try:
        return (*places, f"{_canonical_sender(ask.sender)}>{recipient}")
    except InvalidAddress:
        return places  # a sender that is no address has no pair entries


class _Base:
    def __init__(self, database: Database, secret: bytes, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        key = derive(secret, "suppression")
        self._hash = lru_cache(maxsize=65536)(lambda text: keyed_hash(key, text))
        self._asked_again_at = 0.0

    def _away(self) -> bool:
        return time.monotonic() < self._asked_again_at

    def _failed(self) -> None:
        self._asked_again_at = time.monotonic() + AWAY

    def _read(self, answer: list[Any], flat: Sequence[str]) -> dict[str, list[Held]] | None:
        (epoch, ready), values = answer
        if epoch is None or epoch != ready:
            return None
        _ASKED.labels("redis").inc(len(flat))
        return {k: decode(v) for k, v in zip(flat, values, strict=True) if v is not None}

    def _sql(self, flat: Sequence[str]) -> dict[str, list[Held]]:
        _ASKED.labels("sql").inc(len(flat))
        with self._database.read() as conn:
            return store.held(conn, flat)


class Guard(_Base):
    """The list for synchronous callers. ``secret`` is the installation's master key."""

    def __init__(
        self, client: redis.Redis, database: Database, secret: bytes, clock: Clock = REAL
    ) -> None:
        super().__init__(database, secret, clock)
        self._redis = client

    def check(self, asks: Sequence[Ask]) -> list[str | None]:
        """The reason each may not be mailed, or None.

        Raises :class:`mailweir.plumbing.database.DatabaseUnavailable` when neither Redis nor SQL can
        answer: then nothing may be sent."""
        questions = _Questions(asks)
        flat = questions.flat()
        held: dict[str, list[Held]] | None = None
        if flat and not self._away():
            try:
                with self._redis.pipeline(transaction=True) as pipe:
                    pipe.mget(keys.EPOCH, keys.SUPPRESSION_READY)
                    pipe.hmget(keys.SUPPRESSION, [self._hash(key) for key in flat])
                    held = self._read(pipe.execute(), flat)
            except RedisError:
                self._failed()
        if held is None:
            held = self._sql(flat) if flat else {}
        return questions.answers(held, self._clock.now())


class AsyncGuard(_Base):
    """The same for asyncio; SQL is asked in a thread."""

    def __init__(
        self, client: redis.asyncio.Redis, database: Database, secret: bytes, clock: Clock = REAL
    ) -> None:
        super().__init__(database, secret, clock)
        self._wire = wire_of(client)

    async def check(self, asks: Sequence[Ask]) -> list[str | None]:
        """The reason each may not be mailed, or None; raises as :meth:`Guard.check`."""
        questions = _Questions(asks)
        flat = questions.flat()
        held: dict[str, list[Held]] | None = None
        if flat and not self._away():
            try:
                replies = await self._wire.run(
                    ("MULTI",),
                    ("MGET", keys.EPOCH, keys.SUPPRESSION_READY),
                    ("HMGET", keys.SUPPRESSION, *(self._hash(key) for key in flat)),
                    ("EXEC",),
                )
                held = self._read(replies[-1], flat)
            except RedisError:
                self._failed()
        if held is None:
            held = await asyncio.to_thread(self._sql, flat) if flat else {}
        return questions.answers(held, self._clock.now())
