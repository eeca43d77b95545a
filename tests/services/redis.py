"""A private Redis or Valkey server for the suite, on a unix socket, started as the product does it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from mailweir.plumbing.redis import ServerMissing
from mailweir.plumbing.server import Server, start
from mailweir.plumbing.settings import Settings
from tests.services.needs import missing


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """The server itself, for what must be killed or looked at."""
    data = Path(tempfile.mkdtemp(prefix="mw-redis-"))  # short: a socket's path is limited
    try:
        try:
            server = start(Settings(data=data))
        except ServerMissing as error:
            missing("Redis or Valkey", str(error))
        with server:
            yield server
    finally:
        shutil.rmtree(data, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_url(redis_server: Server) -> str:
    """``unix://`` URL of database 0; database 1 is the broker's by default."""
    return redis_server.url


@pytest.fixture
def redis_clean(redis_url: str) -> Iterator[redis.Redis]:
    """An empty server, and a client of its database 0."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield client
