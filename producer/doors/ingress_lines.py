"""How the ingress consumer takes messages from either broker: claim, then commit or give back.

Redis: scripts move a batch into a list of this consumer together with a lease, so a message is always
in the queue or in a claim with an owner; a claim whose lease ran out is taken over. RabbitMQ: prefetch
and manual acknowledgement, which the broker takes back with the connection.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Protocol

import msgspec
import redis
from kombu import Connection, Consumer
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry

from mailweir.plumbing import keys
from mailweir.plumbing.broker import (
    INGRESS_DEAD,
    dead_queue,
    declared_queues,
    is_redis,
    redis_url,
    transport_options,
)
from mailweir.plumbing.envelope import (
    ACCEPT_TASK,
    BrokenMessage,
    argument_of,
    redis_argument,
)
from mailweir.plumbing.settings import Settings


class Claimed(msgspec.Struct, frozen=True):
    """One claimed message: its payload, or the raw bytes and why they are none."""

    payload: bytes
    broken: str | None = None


class LineDown(Exception):
    """The broker did not answer; what was claimed is claimed still, or will be delivered again."""


class Line(Protocol):
    """A broker, to one consumer."""

    def claim(self) -> Sequence[Claimed]:
        """What this consumer holds, oldest first; claims more when it holds nothing."""
        ...

    def commit(self, count: int) -> bool:
        """Forget the first ``count``; False when the claim was somebody else's by then."""
        ...

    def give_back(self) -> None:
        """Put the first one behind all others."""
        ...

    def leave(self) -> None:
        """Give everything back and go."""
        ...


def open_line(settings: Settings, url: str) -> Line:
    """The line of a broker URL."""
    return RedisLine(settings, url) if is_redis(url) else AmqpLine(settings, url)


def _script(name: str) -> str:
    return files(__package__).joinpath(f"ingress_{name}.lua").read_text()


class RedisLine:
    """Claims by script. One object is one consumer: its name is never used again."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._batch = settings.ingress.batch
        self._lease = int(settings.ingress.lease * 1000)
        self._name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._queue = keys.CELERY_PREFIX + keys.INGRESS
        self._claimed = keys.INGRESS_CLAIMED.format(consumer=self._name)
        self._client = redis.Redis.from_url(
            redis_url(url),
            retry=Retry(NoBackoff(), 0),
            socket_timeout=settings.broker.socket_timeout,
            socket_connect_timeout=settings.redis.connect_timeout,
        )
        self._claim = self._client.register_script(_script("claim"))
        self._commit = self._client.register_script(_script("commit"))
        self._return = self._client.register_script(_script("return"))

    def claim(self) -> Sequence[Claimed]:
        entries = self._call(
            self._claim,
            [self._queue, keys.INGRESS_CONSUMERS],
            [self._name, self._lease, self._batch, keys.INGRESS_CLAIMED.format(consumer="")],
        )
        return [self._read(entry) for entry in entries]

    @staticmethod
    def _read(entry: bytes) -> Claimed:
        try:
            return Claimed(redis_argument(entry, ACCEPT_TASK))
        except BrokenMessage as error:
            return Claimed(entry, str(error))

    def commit(self, count: int) -> bool:
        return bool(
            self._call(self._commit, [keys.INGRESS_CONSUMERS, self._claimed], [self._name, count])
        )

    def give_back(self) -> None:
        self._give("first")

    def leave(self) -> None:
        self._give("leave")
        self._client.close()

    def _give(self, what: str) -> None:
        self._call(
            self._return,
            [keys.INGRESS_CONSUMERS, self._claimed, self._queue],
            [self._name, what],
        )

    @staticmethod
    def _call(script: Any, names: list[str], arguments: list[Any]) -> Any:
        try:
            return script(keys=names, args=arguments)
        except redis.RedisError as error:
            raise LineDown(f"{type(error).__name__}: {error}") from error


class AmqpLine:
    """Prefetch and manual acknowledgement. Also empties the broker's own dead-letter queue, where it
    puts what it has delivered too often."""

    WAIT = 0.2  # real seconds one claim waits for a first message

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings = settings
        self._url = url
        self._held: list[Any] = []
        self._connection: Any = None
        self._errors: tuple[type[Exception], ...] = (OSError,)

    def claim(self) -> Sequence[Claimed]:
        try:
            self._open()
            if not self._held:
                self._drain()
            self._connection.heartbeat_check()
        except self._errors as error:
            self._drop()
            raise LineDown(type(error).__name__) from error
        return [self._read(message) for message in self._held]

    def _open(self) -> None:
        if self._connection is not None:
            return
        connection = Connection(
            self._url,
            heartbeat=30,
            connect_timeout=3,
            transport_options=transport_options(self._settings, self._url),
        )
        self._errors = (
            *connection.connection_errors,
            *connection.channel_errors,
            OperationalError,
        )
        self._connection = connection
        connection.connect()
        channel = connection.default_channel
        ingress = declared_queues(self._settings, quorum=True)[-1]
        for queue in (dead_queue(), ingress):
            queue(channel).declare()
        consumer = Consumer(
            channel,
            queues=[ingress, dead_queue()],
            auto_declare=False,
            accept=["json"],
            on_message=self._held.append,
            prefetch_count=self._settings.ingress.batch,
        )
        consumer.consume()

    def _drain(self) -> None:
        """Wait for a first message, then take what is there."""
        wait = self.WAIT
        while len(self._held) < self._settings.ingress.batch:
            try:
                self._connection.drain_events(timeout=wait)
            except TimeoutError:
                return
            wait = 0.001

    @staticmethod
    def _read(message: Any) -> Claimed:
        body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
        if message.delivery_info.get("routing_key") == INGRESS_DEAD:
            return Claimed(body, "the broker delivered it too often")
        if message.headers.get("task") != ACCEPT_TASK:
            return Claimed(body, f"the message calls another task than {ACCEPT_TASK}")
        try:
            return Claimed(argument_of(body))
        except BrokenMessage as error:
            return Claimed(body, str(error))

    def commit(self, count: int) -> bool:
        try:
            for message in self._held[:count]:
                message.ack()
        except self._errors as error:
            self._drop()
            raise LineDown(type(error).__name__) from error
        del self._held[:count]
        return True

    def give_back(self) -> None:
        try:
            self._held[0].reject(requeue=True)
        except self._errors as error:
            self._drop()
            raise LineDown(type(error).__name__) from error
        del self._held[:1]

    def leave(self) -> None:
        self._drop()

    def _drop(self) -> None:
        """Close; the broker takes back what was not acknowledged."""
        self._held.clear()
        if self._connection is not None:
            self._connection.collect(socket_timeout=1)
            self._connection = None
