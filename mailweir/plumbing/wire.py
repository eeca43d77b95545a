"""A line to Redis for the workers' hot path: many callers, one connection, one write a turn.

redis-py dials, logs in and selects (whatever the URL asks for); then this protocol takes the
connection over. Packing and parsing are hiredis'. What is left out is what a mail pays for and does not
need: taking a connection from a pool for each call, a task for each write, callbacks on each reply.
Measured in ``docs/performance.md``; ``tests/contract/test_wire.py`` holds it against redis-py.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import hiredis
import redis.asyncio
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

CHECKED_VERSIONS = ("8.",)
"""redis-py versions whose private parts this file was read against; a test guards them."""

Argument = str | bytes | int | float
Command = tuple[Argument, ...]
_NOTHING = object()
_pack = cast(Callable[[Command], bytes], hiredis.pack_command)  # its stub knows one argument only


class _Asked:
    """Commands written together, and who waits for their replies."""

    __slots__ = ("count", "due", "replies", "said")

    def __init__(self, count: int, said: asyncio.Future[list[Any]], due: float) -> None:
        self.count = count
        self.said = said
        self.due = due
        self.replies: list[Any] = []


class _Line(asyncio.Protocol):
    """An open connection. Replies come in the order of the commands."""

    def __init__(self, transport: asyncio.Transport, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._timeout = timeout
        self._asked: deque[_Asked] = deque()
        self._unsent: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._parser = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=BaseParser.parse_error,
            notEnoughData=_NOTHING,
        )
        self.lost: Exception | None = None

    def ask(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """The replies, errors among them as exceptions. Written at the end of this turn of the loop."""
        said: asyncio.Future[list[Any]] = self._loop.create_future()
        if self.lost is not None:
            said.set_exception(self.lost)
            return said
        # packed first: what cannot be packed must not be owed a reply
        packed = [_pack(command) for command in commands]
        if not self._unsent:
            self._loop.call_soon(self._write)
        self._unsent += packed
        self._asked.append(_Asked(len(packed), said, self._loop.time() + self._timeout))
        if self._timer is None and self._timeout < math.inf:
            self._timer = self._loop.call_later(self._timeout, self._late)
        return said

    def _write(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        if self.lost is None:
            self._transport.write(data)

    def _late(self) -> None:
        """Replies are late when the oldest is."""
        self._timer = None
        if not self._asked or self.lost is not None:
            return
        left = self._asked[0].due - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._late)
        else:
            self.fail(RedisTimeoutError(f"no reply within {self._timeout:g} s"))

    def data_received(self, data: bytes) -> None:
        """Hand out whole replies."""
        self._parser.feed(data)
        try:
            while (reply := self._parser.gets()) is not _NOTHING:
                if isinstance(reply, hiredis.PushNotification):
                    continue  # of no command
                first = self._asked[0]
                first.replies.append(reply)
                if len(first.replies) == first.count:
                    self._asked.popleft()
                    if not first.said.done():
                        first.said.set_result(first.replies)
        except (InvalidResponse, IndexError) as error:
            self.fail(RedisConnectionError(f"no reply of ours: {type(error).__name__}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The server is gone."""
        self.fail(RedisConnectionError("the connection to Redis was closed"))

    def fail(self, error: Exception) -> None:
        """End the line, once: whoever waits gets ``error``."""
        if self.lost is None:
            self.lost = error
            self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._asked:
            said = self._asked.popleft().said
            if not said.done():
                said.set_exception(error)


class Wire:
    """Commands to the server of a redis-py client. Belongs to one event loop; dials when it is needed,
    and again after the connection was lost. Nothing is tried twice."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.pool = client.connection_pool
        self._connection: Any = None
        self._line: _Line | None = None
        self._dialling: asyncio.Lock = asyncio.Lock()

    async def run(self, *commands: Command) -> list[Any]:
        """The raw replies, one a command, sent and answered together.

        Raises the first error among them, a :class:`redis.exceptions.ResponseError`, and
        :class:`redis.exceptions.ConnectionError` or ``TimeoutError`` where the server is away: then
        nobody knows which of the commands were carried out."""
        replies = await self.ask(*commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def ask(self, *commands: Command) -> list[Any]:
        """As :meth:`run`, with the server's errors among the replies."""
        if not commands:
            return []
        line = self._line
        if line is None or line.lost is not None:
            line = await self._open()
        return await line.ask(commands)

    async def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._line.fail(RedisConnectionError("closed by us"))
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)
        self._line = self._connection = None

    async def _open(self) -> _Line:
        async with self._dialling:
            if self._line is not None and self._line.lost is None:
                return self._line  # somebody dialled while we waited
            await self.close()
            connection = cast(Any, self.pool).make_connection()  # redis-py types it by half
            await connection.connect()
            transport = cast(asyncio.Transport, connection._writer.transport)
            line = _Line(transport, connection.socket_timeout or math.inf)
            transport.set_protocol(line)
            self._connection, self._line = connection, line
            return line


_wires: WeakKeyDictionary[redis.asyncio.Redis, Wire] = WeakKeyDictionary()


def wire_of(client: redis.asyncio.Redis) -> Wire:
    """The one wire of a client: whoever shares the client shares the connection."""
    found = _wires.get(client)
    if found is None:
        found = _wires[client] = Wire(client)
    return found
