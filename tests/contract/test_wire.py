"""The workers' wire to Redis says what redis-py says, and ends as it does when the server is away."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import ConnectionError as GoneError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as LateError

from mailweir.plumbing.redis import find_server
from mailweir.plumbing.settings import Settings
from mailweir.plumbing.wire import CHECKED_VERSIONS, Command, wire_of
from simulator.ports import free_port
from tests.services.stopped import stop

COMMANDS: list[Command] = [
    ("SET", "a", "1"),
    ("GET", "a"),
    ("GET", "nothing"),
    ("HSET", "h", "x", 1, "y", 2.5),
    ("HMGET", "h", "x", "nothing", "y"),
    ("HGETALL", "h"),
    ("RPUSH", "l", b"\x00\xff", "é", ""),
    ("LRANGE", "l", 0, -1),
    ("ZADD", "z", 1.5, "m"),
    ("ZSCORE", "z", "m"),
    ("EVAL", "return {1, 'two', {3, false}}", 0),
    ("XADD", "s", "7-1", "kind", "attempt"),
    ("MGET", "a", "nothing"),
    ("EXPIRE", "a", 60),
    ("UNLINK", "a", "h"),
]


def test_redis_py_is_a_version_that_was_read() -> None:
    assert redis.__version__.startswith(CHECKED_VERSIONS), (
        "read redis/asyncio/connection.py again: does a connection still have _writer, and BaseParser "
        "parse_error?"
    )


@pytest.fixture
async def client(redis_url: str, redis_clean: redis.Redis) -> AsyncIterator[redis.asyncio.Redis]:
    made = redis.asyncio.Redis.from_url(redis_url, socket_timeout=5)
    yield made
    await wire_of(made).close()
    await made.aclose()


async def test_the_same_answers(client: redis.asyncio.Redis, redis_clean: redis.Redis) -> None:
    pool: Any = client.connection_pool
    connection = pool.make_connection()
    await connection.connect()
    expected = []
    for command in COMMANDS:
        await connection.send_command(*command)
        expected.append(await connection.read_response())
    await connection.disconnect()
    redis_clean.flushall()
    assert await wire_of(client).run(*COMMANDS) == expected


async def test_one_transaction(client: redis.asyncio.Redis) -> None:
    replies = await wire_of(client).run(("MULTI",), ("SET", "a", 5), ("GET", "a"), ("EXEC",))
    assert replies[-1] == [b"OK", b"5"]


async def test_an_error_is_the_one_redis_py_raises_and_harms_no_other(
    client: redis.asyncio.Redis,
) -> None:
    wire = wire_of(client)
    with pytest.raises(NoScriptError):
        await wire.run(("SET", "a", 1), ("EVALSHA", "0" * 40, 0))
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await wire.run(("LPUSH", "a", 1))
    wrong, right = await wire.ask(("LPUSH", "a", 1), ("GET", "a"))
    assert isinstance(wrong, ResponseError)
    assert right == b"1"


async def test_many_callers_get_their_own_answers(client: redis.asyncio.Redis) -> None:
    wire = wire_of(client)

    async def one(number: int) -> None:
        size = number % 7 + 1
        commands: list[Command] = [("ECHO", f"{number}:{k}") for k in range(size)]
        if number % 5 == 0:  # who goes away early takes nobody's answer
            task = asyncio.create_task(wire.run(*commands))
            await asyncio.sleep(0)
            task.cancel()
            return
        assert await wire.run(*commands) == [f"{number}:{k}".encode() for k in range(size)]

    await asyncio.gather(*(one(number) for number in range(2000)))
    big = b"x" * 5_000_000
    assert await wire.run(("ECHO", big)) == [big]


async def test_what_cannot_be_packed_is_refused_and_owed_no_reply(
    client: redis.asyncio.Redis,
) -> None:
    wire = wire_of(client)
    with pytest.raises(TypeError):
        await wire.run(("SET", "a", 1), ("SET", "a", None))  # type: ignore[arg-type]  # the point
    assert await wire.run(("PING",)) == [b"PONG"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server of its own with a password, on TCP."""
    port = free_port()
    binary = find_server(Settings(data=tmp_path))
    line = [str(binary), "--port", str(port), "--save", "", "--requirepass", "s3cret"]
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        sync = redis.Redis(port=port, password="s3cret")
        while True:
            try:
                sync.ping()
                break
            except GoneError:
                assert process.poll() is None
        sync.close()
        yield port, process
        process.kill()


async def test_password_database_and_a_server_that_goes_and_comes(
    server: tuple[int, subprocess.Popen[bytes]],
) -> None:
    port, process = server
    client = redis.asyncio.Redis.from_url(f"redis://:s3cret@127.0.0.1:{port}/3", socket_timeout=1.0)
    wire = wire_of(client)
    await wire.run(("SET", "a", 1))
    other = redis.asyncio.Redis.from_url(f"redis://:s3cret@127.0.0.1:{port}/3")
    assert await other.get("a") == b"1"
    stop(process.pid)  # it hears nothing
    with pytest.raises(LateError):
        await wire.run(("GET", "a"))
    process.send_signal(18)  # SIGCONT
    assert await wire.run(("GET", "a")) == [b"1"], "it dials again"
    waiting = asyncio.create_task(wire.run(("BLPOP", "never", 0)))
    await other.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(GoneError):
        await waiting
    process.kill()
    process.wait()
    with pytest.raises(GoneError):
        await wire.run(("GET", "a"))
    await wire.close()
    await client.aclose()
    await other.aclose()
