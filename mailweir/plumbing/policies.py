"""Policy versions in SQL: which is in force, its history, going back; and a watch that follows it.

Every change is a new row with a higher version, so that one number tells every process to look again.
A policy handed in here has passed ``router.policy.load`` without errors; this room only keeps it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, func, insert, select
from sqlalchemy.exc import IntegrityError

from mailweir.contracts.policy import Policy
from mailweir.plumbing import keys
from mailweir.plumbing.database import Database
from mailweir.spool.schema import policies

REFRESH = 1.0  # real seconds between two looks at the version; changes are live within 2 s
APPLY_TRIES = 5
SQL_REFRESH = 1.5  # real seconds between two looks at SQL while Redis answers: still within 2 s
_log = structlog.get_logger(__name__)
# made while one thread runs: two threads that meet a type for the first time together crash msgspec 0.22
_decode_policy = msgspec.json.Decoder(Policy).decode


class NoPolicy(Exception):
    """No policy has been applied yet."""


class UnknownVersion(Exception):
    """There is no such policy version, or none to go back to."""


@dataclass(frozen=True, slots=True)
class Version:
    """One row of the history."""

    version: int
    author: str
    approver: str | None
    reason: str | None
    at: float  # policy seconds
    canary: int  # percent of jobs it decides
    mode: str  # live | shadow


@dataclass(frozen=True, slots=True)
class InForce:
    """The policies that matter now."""

    version: int  # the highest version: changes with every change
    live: Policy
    canary: Policy | None = None
    percent: int = 0  # of jobs the canary decides
    shadow: Policy | None = None  # evaluated on live jobs, only differences are logged

    def decides(self, job_id: int) -> Policy:
        """The policy that decides this job: always the same one for a job while both are in force."""
        if self.canary is not None and _slot(job_id) < self.percent:
            return self.canary
        return self.live


def _slot(job_id: int) -> int:
    """0..99 by a mixed id, since ids are ordered by time."""
    return (((job_id * 0x9E3779B97F4A7C15) & ((1 << 64) - 1)) >> 32) % 100


def apply(
    database: Database,
    policy: Policy,
    yaml: str,
    *,
    author: str,
    reason: str | None,
    now: float,
    approver: str | None = None,
    canary: int = 100,
    shadow: bool = False,
    redis: Redis | None = None,
) -> int:
    """Store a checked policy as the next version and tell the processes. The new version's number.

    ``canary`` below 100 leaves the live policy in force for the other jobs; ``shadow`` decides nothing.
    A full live version ends canaries and shadows before it. With ``redis`` the change is seen at the
    watches' next look, without it as soon as they ask SQL.
    """
    if not 1 <= canary <= 100:
        raise ValueError(f"canary is a percentage from 1 to 100, not {canary}")
    for attempt in range(APPLY_TRIES):
        try:
            version = _insert(database, policy, yaml, author, approver, reason, now, canary, shadow)
        except IntegrityError:  # somebody else applied at this moment and has our number
            if attempt == APPLY_TRIES - 1:
                raise
            continue
        break
    announce(redis, version)
    return version


def _insert(
    database: Database,
    policy: Policy,
    yaml: str,
    author: str,
    approver: str | None,
    reason: str | None,
    now: float,
    canary: int,
    shadow: bool,
) -> int:
    with database.write() as conn:
        version = int(conn.execute(select(func.max(policies.c.version))).scalar() or 0) + 1
        compiled = msgspec.structs.replace(policy, version=version)
        conn.execute(
            insert(policies).values(
                version=version,
                yaml=yaml,
                compiled=msgspec.json.encode(compiled).decode(),
                author=author,
                approver=approver,
                reason=reason,
                at=now,
                canary=canary,
                mode="shadow" if shadow else "live",
            )
        )
    return version


def rollback(
    database: Database,
    *,
    author: str,
    reason: str | None,
    now: float,
    to: int | None = None,
    redis: Redis | None = None,
) -> int:
    """Put an earlier version in force again, as a new version; its number.

    Without ``to``: ends a canary or shadow if there is one, else goes to the live version before this.
    Raises :class:`UnknownVersion`, :class:`NoPolicy`.
    """
    with database.read() as conn:
        target = to if to is not None else _previous(conn)
        row = conn.execute(
            select(policies.c.yaml, policies.c.compiled).where(policies.c.version == target)
        ).one_or_none()
    if row is None:
        raise UnknownVersion(f"there is no policy version {target}; see `mailweir policy history`")
    policy = _decode_policy(row.compiled)
    why = f"rollback to version {target}" + (f": {reason}" if reason else "")
    return apply(database, policy, row.yaml, author=author, reason=why, now=now, redis=redis)


def _previous(conn: Connection) -> int:
    """The version a plain rollback goes to."""
    rows = conn.execute(
        select(
            policies.c.version, policies.c.canary, policies.c.mode, policies.c.compiled
        ).order_by(policies.c.version.desc())
    ).all()
    if not rows:
        raise NoPolicy("no policy has been applied yet; use `mailweir policy apply FILE`")
    full = [r for r in rows if r.mode == "live" and r.canary == 100]
    if full and rows[0].version != full[0].version:
        return int(full[0].version)
    live = _bare(full[0].compiled)
    for row in full[1:]:  # a rollback is a copy: going back again must not find the copy's original
        if _bare(row.compiled) != live:
            return int(row.version)
    raise UnknownVersion("there is no earlier policy to go back to")


def _bare(compiled: str) -> Policy:
    return msgspec.structs.replace(_decode_policy(compiled), version=0)


def history(database: Database, limit: int = 50) -> list[Version]:
    """The latest versions, newest first."""
    columns = [getattr(policies.c, name) for name in Version.__slots__]
    with database.read() as conn:
        rows = conn.execute(select(*columns).order_by(policies.c.version.desc()).limit(limit)).all()
    return [Version(*row) for row in rows]


def stored(database: Database, version: int | None = None) -> tuple[int, str, Policy]:
    """Number, YAML and meaning of a version, by default of the live one; the YAML is empty for the
    built-in policy. Raises :class:`NoPolicy`, :class:`UnknownVersion`."""
    query = select(policies.c.version, policies.c.yaml, policies.c.compiled)
    if version is None:
        query = query.where(policies.c.mode == "live", policies.c.canary == 100)
    else:
        query = query.where(policies.c.version == version)
    with database.read() as conn:
        row = conn.execute(query.order_by(policies.c.version.desc()).limit(1)).one_or_none()
    if row is None and version is None:
        raise NoPolicy("no policy has been applied yet; use `mailweir policy apply FILE`")
    if row is None:
        raise UnknownVersion(f"there is no policy version {version}; see `mailweir policy history`")
    return int(row.version), str(row.yaml), _decode_policy(row.compiled)


def in_force(database: Database) -> InForce:
    """Live policy, canary and shadow now, from SQL. Raises :class:`NoPolicy`."""
    with database.read() as conn:
        heads = conn.execute(
            select(policies.c.version, policies.c.canary, policies.c.mode).order_by(
                policies.c.version.desc()
            )
        ).all()
        live = next((r for r in heads if r.mode == "live" and r.canary == 100), None)
        if live is None:
            raise NoPolicy("no policy has been applied yet; use `mailweir policy apply FILE`")
        later = [r for r in heads if r.version > live.version]
        canary = next((r for r in later if r.mode == "live"), None)
        shadow = next((r for r in later if r.mode == "shadow"), None)

        def load(version: int) -> Policy:
            text = conn.execute(
                select(policies.c.compiled).where(policies.c.version == version)
            ).scalar_one()
            return _decode_policy(text)

        return InForce(
            int(heads[0].version),
            load(live.version),
            load(canary.version) if canary is not None else None,
            int(canary.canary) if canary is not None else 0,
            load(shadow.version) if shadow is not None else None,
        )


def current(database: Database) -> Policy:
    """The live policy. Raises :class:`NoPolicy`."""
    return in_force(database).live


def announce(redis: Redis | None, version: int) -> None:
    """Tell the watches. A failing Redis is logged, not raised: they ask SQL when it is away."""
    if redis is None:
        return
    try:
        redis.set(keys.POLICY_VERSION, str(version))
    except RedisError as error:
        _log.warning("policy version not announced", error=type(error).__name__)


class PolicyWatch:
    """The policy in force, kept for a second. Thread-safe; one per process."""

    def __init__(
        self,
        database: Database,
        redis: Redis | None = None,
        *,
        refresh: float = REFRESH,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database, self._redis = database, redis
        self._refresh, self._monotonic = refresh, monotonic
        self._lock = threading.Lock()
        self._known: InForce | None = None
        self._looked = self._checked = float("-inf")

    def get(self) -> Policy:
        """The live policy, at most 2 s old. Raises :class:`NoPolicy` until one is applied."""
        return self.in_force().live

    def in_force(self) -> InForce:
        """Live policy, canary and shadow, at most 2 s old. The object is the same until a change."""
        with self._lock:
            now = self._monotonic()
            if self._known is not None and now - self._looked < self._refresh:
                return self._known
            if self._known is None or self._changed(self._known.version, now):
                self._known = in_force(self._database)
            self._looked = now
            return self._known

    def _changed(self, known: int, now: float) -> bool:
        """Whether there is another version: by Redis each time, by SQL when Redis does not know or was
        not asked to check for a while (an apply whose announcement was lost)."""
        told = self._announced()
        if told is not None and (told != known or now - self._checked < SQL_REFRESH):
            return told != known
        with self._database.read() as conn:
            latest = int(conn.execute(select(func.max(policies.c.version))).scalar() or 0)
        self._checked = now
        if told != latest:
            announce(self._redis, latest)
        return latest != known

    def _announced(self) -> int | None:
        if self._redis is None:
            return None
        try:
            raw = self._redis.get(keys.POLICY_VERSION)
        except RedisError:
            return None  # SQL knows
        return int(raw) if isinstance(raw, bytes | str) else None
