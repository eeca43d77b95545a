"""The list as Redis holds it: one hash, field = keyed hash of the key, value = what holds under it.

No address is in Redis. ``keys.SUPPRESSION_READY`` names the epoch the projection was built for and
expires after :data:`TRUST` seconds unless the listener renews it: a projection nobody keeps is not
trusted, and askers turn to SQL. Adding projects before the commit (a crash between leaves one address
too many), removing after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, select

from mailweir.plumbing import keys
from mailweir.plumbing.database import Database
from mailweir.plumbing.events import drop, put
from mailweir.plumbing.install import derive, keyed_hash
from mailweir.spool.schema import positions
from suppression import store
from suppression.entries import Held, encode

STALE = "suppression:stale"  # row of `positions`: a projection failed, build it again
TRUST = 15  # real seconds a projection is trusted without its listener

_STALE = select(positions.c.listener).where(positions.c.listener == STALE)


class Projection:
    """Writes the hash. ``secret`` is the installation's master key."""

    def __init__(self, client: redis.Redis, database: Database, secret: bytes) -> None:
        self._redis = client
        self._database = database
        self._key = derive(secret, "suppression")

    @contextmanager
    def adding(self, touched: list[str]) -> Iterator[Connection]:
        """A write transaction that adds entries; the caller puts the keys it changed into ``touched``."""
        with self._database.write() as conn:
            store.lock(conn)
            yield conn
            self._project(conn, touched)

    @contextmanager
    def removing(self, touched: list[str]) -> Iterator[Connection]:
        """A write transaction that removes or rewrites entries, projected once it is committed."""
        with self._database.write() as conn:
            store.lock(conn)
            yield conn
        with self._database.write() as conn:
            store.lock(conn)
            self._project(conn, touched)

    def _project(self, conn: Connection, touched: Sequence[str]) -> None:
        """Bring the fields of these keys to what this transaction sees, or distrust the projection."""
        if not touched:
            return
        names = list(dict.fromkeys(touched))
        held = store.held(conn, names)
        pipe = self._redis.pipeline(transaction=True)
        for key in names:
            field = keyed_hash(self._key, key)
            if key in held:
                pipe.hset(keys.SUPPRESSION, field, encode(held[key]))
            else:
                pipe.hdel(keys.SUPPRESSION, field)
        try:
            pipe.execute()
        except RedisError:
            # Redis away: askers use SQL. It comes back stale, so the listener must build it again;
            # the mark in SQL tells it so, whichever process failed.
            put(conn, positions, "listener", STALE, position="1", updated_at=time.time())
            self._distrust()

    def _distrust(self) -> None:
        try:
            self._redis.delete(keys.SUPPRESSION_READY)
        except RedisError:
            return  # the mark expires by itself

    def ready(self) -> bool:
        """Whether the projection was built in this Redis' life and is kept."""
        epoch, built = self._redis.mget(keys.EPOCH, keys.SUPPRESSION_READY)
        return epoch is not None and epoch == built

    def renew(self) -> bool:
        """Keep the trust if the projection is ready; False when it must be built."""
        with self._database.read() as conn:
            stale = conn.execute(_STALE).first() is not None
        if stale or not self.ready():
            return False
        return bool(self._redis.expire(keys.SUPPRESSION_READY, TRUST))

    def rebuild(self) -> int | None:
        """Build the whole projection beside the old one and swap; how many keys, or None while Redis
        has no epoch. Writers wait meanwhile (a million entries: some ten seconds)."""
        epoch = self._redis.get(keys.EPOCH)
        if epoch is None:
            return None
        draft, count = f"{keys.SUPPRESSION}:draft", 0
        with self._database.write() as conn:
            store.lock(conn)
            self._redis.delete(draft)
            for page in store.every(conn):
                grouped: dict[str, list[Held]] = {}
                for entry in page:
                    if not entry.pending:
                        grouped.setdefault(entry.key, []).append(store.as_held(entry))
                if grouped:
                    count += len(grouped)
                    flat: list[str | bytes] = []
                    for key, held in grouped.items():
                        flat += (keyed_hash(self._key, key), encode(held))
                    self._redis.hset(draft, items=flat)
            pipe = self._redis.pipeline(transaction=True)
            if count:
                pipe.rename(draft, keys.SUPPRESSION)
            else:
                pipe.delete(keys.SUPPRESSION)
            pipe.set(keys.SUPPRESSION_READY, epoch, ex=TRUST)
            pipe.execute()
            drop(conn, positions, "listener", [STALE])
        return count
