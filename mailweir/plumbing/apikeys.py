"""API keys in SQL: made, listed, revoked, recognised.

Only hashes are stored (:mod:`mailweir.contracts.credential`); the secret is shown once. A door keeps what
it looked up for at most :data:`CACHE_SECONDS`, so a revoked key is refused everywhere after that.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Row, insert, select, update

from mailweir.contracts.credential import (
    PREFIX,
    SCOPES,
    ApiKey,
    BadToken,
    auth_hash,
    mac_key,
    split_token,
)
from mailweir.plumbing.database import Database
from mailweir.spool.schema import api_keys

CACHE_SECONDS = 5.0  # real
_CACHE_SIZE = 10_000


class AuthFailed(Exception):
    """No such key, or it is revoked, expired or wrong; the caller learns no more than that."""


class KeyRow(NamedTuple):
    """A key as listed: everything but its hashes. Times in policy seconds."""

    id: str
    tenant: str
    scopes: tuple[str, ...]
    domains: tuple[str, ...]
    created_at: float
    expires_at: float | None
    revoked_at: float | None


def create(
    database: Database,
    *,
    tenant: str,
    scopes: Sequence[str] = ("send",),
    domains: Sequence[str] = ("*",),
    now: float | None = None,
    expires_at: float | None = None,
) -> str:
    """Make a key; the text returned is the only copy of its secret. Raises ValueError for a scope or
    tenant that cannot be."""
    unknown = set(scopes) - SCOPES
    if unknown or not scopes:
        raise ValueError(
            f"scopes are {', '.join(sorted(SCOPES))}, not {', '.join(sorted(unknown))}"
        )
    if not tenant or len(tenant) > 64 or not tenant.isprintable() or "|" in tenant:
        raise ValueError("a tenant is 1 to 64 printable characters without '|'")
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    with database.write() as conn:
        conn.execute(
            insert(api_keys).values(
                id=key_id,
                tenant=tenant,
                auth_hash=auth_hash(secret),
                mac_key=mac_key(secret),
                scopes=" ".join(sorted(set(scopes))),
                domains=" ".join(domain.lower() for domain in domains),
                created_at=time.time() if now is None else now,
                expires_at=expires_at,
            )
        )
    return f"{PREFIX}{key_id}.{secret}"


def listing(database: Database, tenant: str | None = None) -> list[KeyRow]:
    """Keys by age, of one tenant or all."""
    query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
    if tenant is not None:
        query = query.where(api_keys.c.tenant == tenant)
    with database.read() as conn:
        rows = conn.execute(query).all()
    return [
        KeyRow(
            row.id,
            row.tenant,
            tuple(row.scopes.split()),
            tuple(row.domains.split()),
            row.created_at,
            row.expires_at,
            row.revoked_at,
        )
        for row in rows
    ]


def revoke(database: Database, key_id: str, now: float) -> bool:
    """Revoke a key by id or text; whether it was there and alive."""
    key_id = key_id.removeprefix(PREFIX).partition(".")[0]
    with database.write() as conn:
        done = conn.execute(
            update(api_keys)
            .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
            .values(revoked_at=now)
        )
    return done.rowcount == 1


class _Known(NamedTuple):
    key: ApiKey
    auth_hash: bytes
    expires_at: float | None
    until: float  # monotonic seconds


class KeyRing:
    """Recognises callers at a door. Thread-safe; one database look-up per key and 5 s."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._cache: dict[str, _Known | float] = {}  # a number: unknown until then

    def authenticate(self, token: str, now: float) -> ApiKey:
        """The caller behind a key. Raises :class:`AuthFailed`, DatabaseUnavailable."""
        try:
            key_id, secret = split_token(token)
        except BadToken:
            raise AuthFailed("the API key is not valid") from None
        known = self._look_up(key_id)
        # an unknown id costs the same comparison, so that time does not tell ids apart
        stored = known.auth_hash if known else bytes(32)
        if not hmac.compare_digest(stored, auth_hash(secret)) or known is None:
            raise AuthFailed("the API key is not valid")
        if known.expires_at is not None and known.expires_at <= now:
            raise AuthFailed("the API key is not valid")
        return known.key

    def cached(self, token: str) -> bool:
        """Whether :meth:`authenticate` would answer without the database."""
        key_id = token.strip().removeprefix(PREFIX).partition(".")[0]
        found = self._cache.get(key_id)
        until = found.until if isinstance(found, _Known) else found
        return until is not None and until > time.monotonic()

    def by_id(self, key_id: str, now: float) -> ApiKey | None:
        """A key that is alive, by its id: for published messages, proven by their HMAC."""
        known = self._look_up(key_id)
        if known is None or (known.expires_at is not None and known.expires_at <= now):
            return None
        return known.key

    def _look_up(self, key_id: str) -> _Known | None:
        real = time.monotonic()
        found = self._cache.get(key_id)
        if isinstance(found, _Known):
            if found.until > real:
                return found
        elif found is not None and found > real:
            return None
        with self._database.read() as conn:
            row = conn.execute(
                select(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
            ).one_or_none()
        known = _known(row, real + CACHE_SECONDS) if row is not None else None
        with self._lock:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            self._cache[key_id] = known or real + CACHE_SECONDS
        return known


def _known(row: Row[Any], until: float) -> _Known:
    key = ApiKey(
        id=row.id,
        tenant=row.tenant,
        scopes=frozenset(row.scopes.split()),
        domains=tuple(row.domains.split()),
        mac_key=bytes(row.mac_key),
    )
    return _Known(key, bytes(row.auth_hash), row.expires_at, until)
