"""The list as Redis holds it: one hash, field = keyed hash of the key, value = what holds under it.

No address is in Redis. ``keys.SUPPRESSION_READY`` names the epoch the projection was built for and
expires after :data:`TRUST` seconds unless the listener renews it: a projection nobody keeps is not
trusted, and askers turn to SQL. Adding projects before the commit (a crash between leaves one address
too many), removing after it.

The whole is built beside the old one in pages, without a lock: meanwhile writers note what they write in
a list of changes, which is applied before the swap. Only the begin and the swap hold the writers' lock,
so every change is in a page read after its commit, or in the list.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress

import redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, select

from mailweir.plumbing import keys
from mailweir.plumbing.database import Database
from mailweir.plumbing.events import drop, put
from mailweir.plumbing.install import derive, keyed_hash
from mailweir.spool.schema import positions
from suppression import store
from suppression.entries import Entry, Held, encode

STALE = "suppression:stale"  # row of `positions`: a projection failed, build it again
TRUST = 15  # real seconds a projection is trusted without its listener
PAGE = 2000  # rows read at once while it is built

_STALE = select(positions.c.listener).where(positions.c.listener == STALE)

_WRITE = """
local building = redis.call('EXISTS', KEYS[2]) == 1
for i = 1, #ARGV, 2 do
  if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[i])
  else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  if building then redis.call('RPUSH', KEYS[3], ARGV[i], ARGV[i + 1]) end
end
"""
_PAGE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('EXPIRE', KEYS[1], ARGV[2])
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
return 1
"""
_SWAP = """
local building, draft, changes, list, ready, epoch = unpack(KEYS)
if redis.call('GET', building) ~= ARGV[1] or redis.call('GET', epoch) ~= ARGV[2] then return -1 end
for at = 0, redis.call('LLEN', changes) - 1, 1000 do
  local some = redis.call('LRANGE', changes, at, at + 999)
  for i = 1, #some, 2 do
    if some[i + 1] == '' then redis.call('HDEL', draft, some[i])
    else redis.call('HSET', draft, some[i], some[i + 1]) end
  end
end
redis.call('UNLINK', list, changes, building)
if redis.call('EXISTS', draft) == 1 then redis.call('RENAME', draft, list) end
redis.call('SET', ready, ARGV[2], 'EX', ARGV[3])
return redis.call('HLEN', list)
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('UNLINK', unpack(KEYS)) end
"""


class Projection:
    """Writes the hash. ``secret`` is the installation's master key."""

    def __init__(self, client: redis.Redis, database: Database, secret: bytes) -> None:
        self._redis = client
        self._database = database
        self._key = derive(secret, "suppression")
        self._write, self._page, self._swap, self._release = (
            client.register_script(text) for text in (_WRITE, _PAGE, _SWAP, _RELEASE)
        )

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
        values: list[str | bytes] = []
        for key in names:
            values += (keyed_hash(self._key, key), encode(held[key]) if key in held else b"")
        try:
            self._write(
                keys=[keys.SUPPRESSION, keys.SUPPRESSION_BUILDING, keys.SUPPRESSION_CHANGES],
                args=values,
            )
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
        """Build the whole projection at once; as :meth:`build`."""
        building = self.build()
        while True:
            try:
                next(building)
            except StopIteration as done:
                count: int | None = done.value
                return count

    def build(self) -> Generator[int, None, int | None]:
        """Build the whole projection, a page at each step (yields the keys so far), beside the old one,
        and swap. Returns how many keys, or None when it must be tried again: Redis has no epoch, lost
        it, or another builds. Raises RedisError and DatabaseUnavailable; the old one is not trusted then."""
        epoch = self._redis.get(keys.EPOCH)
        token = secrets.token_hex(8)
        if epoch is None or not self._begin(token):
            return None
        parts = [keys.SUPPRESSION_BUILDING, keys.SUPPRESSION_DRAFT, keys.SUPPRESSION_CHANGES]
        try:
            after, count = "", 0
            while True:
                with self._database.read() as conn:
                    page = store.page(conn, after, size=PAGE)
                if not page:
                    break
                after = page[-1].key
                values = self._values(page)
                count += len(values) // 2
                if not self._page(keys=parts[:2], args=[token, TRUST * 2, *values]):
                    return None
                yield count
            with self._database.write() as conn:
                store.lock(conn)
                if conn.execute(_STALE).first() is not None:
                    return None  # a writer could not note its change: begin again
                done: int = self._swap(
                    keys=[*parts, keys.SUPPRESSION, keys.SUPPRESSION_READY, keys.EPOCH],
                    args=[token, epoch, TRUST],
                )
            return None if done < 0 else done
        finally:
            with suppress(RedisError):  # it expires by itself
                self._release(keys=parts, args=[token])

    def _begin(self, token: str) -> bool:
        """From now on writers note their changes; whether nobody else builds."""
        with self._database.write() as conn:
            store.lock(conn)
            if not self._redis.set(keys.SUPPRESSION_BUILDING, token, nx=True, ex=TRUST * 2):
                return False
            self._redis.unlink(
                keys.SUPPRESSION_READY, keys.SUPPRESSION_DRAFT, keys.SUPPRESSION_CHANGES
            )
            drop(conn, positions, "listener", [STALE])
        return True

    def _values(self, page: Sequence[Entry]) -> list[str | bytes]:
        grouped: dict[str, list[Held]] = {}
        for entry in page:
            if not entry.pending:
                grouped.setdefault(entry.key, []).append(store.as_held(entry))
        flat: list[str | bytes] = []
        for key, held in grouped.items():
            flat += (keyed_hash(self._key, key), encode(held))
        return flat
