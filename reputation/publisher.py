"""Publishes routing snapshots, and knows who may: one leader by lease, fenced in Redis and in SQL."""

from __future__ import annotations

import secrets
import time
import zlib

import msgspec
import prometheus_client
import redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, delete, func, insert, select

from mailweir.contracts.snapshot import PathState, Snapshot
from mailweir.plumbing import keys
from mailweir.spool.schema import snapshots

ROLE = "reputation"
KEEP = 30 * 86400.0  # policy seconds a snapshot is kept in SQL
MAX_BYTES = 1 << 20

_RENEW = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
_PUBLISH = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('SET', KEYS[3], ARGV[3])
return 1
"""
_VERSION = prometheus_client.Gauge("mailweir_snapshot_version", "Version of the snapshot in force.")
_TRIMMED = prometheus_client.Counter(
    "mailweir_snapshots_trimmed", "Snapshots that were larger than 1 MiB and lost reasons or paths."
)
_BYTES = prometheus_client.Gauge("mailweir_snapshot_bytes", "Its encoded size.")


class NotLeader(Exception):
    """Another process leads, or Redis could not be asked; what was not published stays unpublished."""


def fitted(snapshot: Snapshot) -> Snapshot:
    """The snapshot within :data:`MAX_BYTES`: routers read it every second. First reasons go, then the
    paths of which it says least: warm and without a cap; routers read ``other``'s state for them."""
    if len(msgspec.json.encode(snapshot)) <= MAX_BYTES:
        return snapshot
    _TRIMMED.inc()
    paths = {
        name: msgspec.structs.replace(state, reasons=state.reasons[:1])
        for name, state in snapshot.paths.items()
    }
    small = msgspec.structs.replace(snapshot, paths=paths)
    plain = [
        name
        for name, state in paths.items()
        if state.state == "warm" and state.cap_day is None and state.cap_hour is None
    ]
    plain.sort(key=lambda name: abs(paths[name].score - PathState().score))
    while plain and len(msgspec.json.encode(small)) > MAX_BYTES:
        for name in plain[: max(1, len(plain) // 4)]:
            del paths[name]
        del plain[: max(1, len(plain) // 4)]
    if len(msgspec.json.encode(small)) > MAX_BYTES:
        for name, state in paths.items():
            paths[name] = msgspec.structs.replace(state, reasons=())
    return small


class Leadership:
    """A lease in Redis: who holds it leads. ``seconds`` are real."""

    def __init__(self, client: redis.Redis, seconds: float) -> None:
        self._redis = client
        self._seconds = seconds
        self.token = secrets.token_hex(8)
        self._name = keys.leader(ROLE)
        self._renew = client.register_script(_RENEW)
        self._publish = client.register_script(_PUBLISH)
        self._held_until = 0.0

    def hold(self) -> bool:
        """Take or renew the lease; whether we lead. Without Redis the lease we hold runs out."""
        asked = time.monotonic()
        milliseconds = int(self._seconds * 1000)
        try:
            ok = self._renew(keys=[self._name], args=[self.token, milliseconds])
            if not ok:
                ok = self._redis.set(self._name, self.token, nx=True, px=milliseconds)
        except RedisError:
            return time.monotonic() < self._held_until
        self._held_until = asked + self._seconds if ok else 0.0
        return bool(ok)

    def publish(self, snapshot: Snapshot) -> None:
        """Put a snapshot in force. Raises :class:`NotLeader`."""
        body = msgspec.json.encode(snapshot)
        try:
            done = self._publish(
                keys=[self._name, keys.SNAPSHOT, keys.SNAPSHOT_VERSION],
                args=[self.token, body, str(snapshot.version)],
            )
        except RedisError as error:
            raise NotLeader(f"Redis does not answer: {type(error).__name__}") from error
        if not done:
            raise NotLeader("another process holds the lease")
        _VERSION.set(snapshot.version)
        _BYTES.set(len(body))

    def release(self) -> None:
        """Give the lease up, so that a standby takes over at once."""
        try:
            self._renew(keys=[self._name], args=[self.token, 1])
        except RedisError:
            return  # it runs out by itself
        finally:
            self._held_until = 0.0


def store(conn: Connection, snapshot: Snapshot) -> None:
    """Keep a snapshot for explanations and replay. Its version is the fence: an IntegrityError says that
    another leader has written it."""
    body = zlib.compress(msgspec.json.encode(snapshot), 1)
    conn.execute(
        insert(snapshots).values(version=snapshot.version, at=snapshot.created_at, body=body)
    )


def load(body: bytes) -> Snapshot:
    """A snapshot as :func:`store` keeps it."""
    return msgspec.json.decode(zlib.decompress(body), type=Snapshot)


def last(conn: Connection) -> Snapshot | None:
    """The newest snapshot in SQL."""
    newest = select(snapshots.c.body).order_by(snapshots.c.version.desc()).limit(1)
    body = conn.execute(newest).scalar()
    return None if body is None else load(bytes(body))


def next_version(conn: Connection) -> int:
    """The version after the newest one."""
    return int(conn.execute(select(func.max(snapshots.c.version))).scalar() or 0) + 1


def prune(conn: Connection, now: float, limit: int = 500) -> int:
    """Delete snapshots older than :data:`KEEP`, the newest never; how many."""
    newest = select(func.max(snapshots.c.version)).scalar_subquery()
    old = (
        select(snapshots.c.version)
        .where(snapshots.c.at < now - KEEP, snapshots.c.version < newest)
        .limit(limit)
    )
    return conn.execute(delete(snapshots).where(snapshots.c.version.in_(old))).rowcount
