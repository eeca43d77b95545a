"""The broker transport: publish to the ingress queue of the shared Celery broker (extra ``[broker]``).

*Published* is not accepted: this promises what the broker promises, and what the ingress consumer
refuses is a dead letter, not an exception here. Who needs more takes :class:`producer.client.Client` or
the outbox. Each message carries its key's id and an HMAC, so broker access alone submits nothing.
"""

from __future__ import annotations

import importlib
import os
import secrets
import threading
import time
from collections.abc import Mapping
from email.message import Message as StdMessage
from types import TracebackType
from typing import Any

import msgspec

from mailweir.contracts import credential
from mailweir.contracts.submit import Published

from .errors import ConfigurationError, PayloadTooLarge, QueueUnavailable
from .message import Message, to_request
from .wire import encode

INGRESS = "ingress"
TASK = "mailweir.accept"
PREFIX = "mwq:"  # key prefix of our queues on Redis
MAX_WAITING = 50_000  # messages
MAX_BYTES = 256 * 1024 * 1024  # in the queue, estimated from its length and what was sent lately
MAX_MESSAGE = 1024 * 1024  # bytes of one message: a broker is no place for attachments
_LOOK_EVERY = 1.0  # seconds between two looks at the queue's length


class PublishedResult(msgspec.Struct, frozen=True):
    """The broker has it; the house may not yet."""

    id: str  # becomes the idempotency key where the message has none
    status: str = "published"


class BrokerClient:
    """Publishes messages with kombu. Thread-safe.

    ``url`` is Celery's broker URL (``redis://``, ``redis+socket://``, ``amqp://``), by default
    ``MAILWEIR_BROKER_URL``. Raises :class:`~producer.errors.QueueUnavailable` (retryable) when the
    broker does not answer or more than 50,000 messages or 256 MiB wait."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 15.0,
        max_waiting: int = MAX_WAITING,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        url = url or os.environ.get("MAILWEIR_BROKER_URL", "")
        token = api_key or os.environ.get("MAILWEIR_API_KEY", "")
        if not url:
            raise ConfigurationError("set MAILWEIR_BROKER_URL to the broker's URL")
        try:
            self._key_id, secret = credential.split_token(token)
        except credential.BadToken as error:
            raise ConfigurationError(f"MAILWEIR_API_KEY: {error}") from None
        self._mac_key = credential.mac_key(secret)
        try:
            self._kombu: Any = importlib.import_module("kombu")
        except ImportError:
            raise ConfigurationError("install mailweir-client[broker]") from None
        self._redis = url.startswith(("redis", "rediss"))
        options: dict[str, Any] = {
            "confirm_publish": True,
            "read_timeout": timeout,  # a broker that stands still must not hold the service
            "write_timeout": timeout,
        }
        if self._redis:
            options = {
                "global_keyprefix": PREFIX,
                "socket_timeout": timeout,
                "socket_connect_timeout": min(timeout, 3.0),
                "retry_on_timeout": False,
                "priority_steps": [0],
            }
        self._connection: Any = self._kombu.Connection(
            url, transport_options=options, connect_timeout=min(timeout, 3.0)
        )
        self._timeout = timeout
        self._max_waiting, self._max_bytes = max_waiting, max_bytes
        self._lock = threading.Lock()
        self._producer: Any = None
        self._looked = 0.0
        self._waiting = 0
        self._average = 0.0  # bytes of our messages lately: the queue's tell nobody their size

    def send(self, message: Message | StdMessage, **options: Any) -> PublishedResult:
        """Publish one message; returns when the broker has it."""
        request = to_request(message, options)
        number = secrets.token_hex(16)
        body = encode(request).decode("utf-8")
        if len(body) > MAX_MESSAGE:
            raise PayloadTooLarge(
                f"{len(body)} bytes; publish at most {MAX_MESSAGE}, or use Client"
            )
        at = time.time()
        mac = credential.sign(self._mac_key, self._key_id, at, number, body)
        published = Published(self._key_id, at, number, body, mac)
        with self._lock:
            try:
                self._check_room(len(body))
                self._publish(number, published)
            except QueueUnavailable:
                raise
            except Exception as error:
                self._drop()
                raise QueueUnavailable(
                    f"the broker does not take it: {type(error).__name__}"
                ) from None
        return PublishedResult(number)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._producer = None
            self._connection.release()

    def __enter__(self) -> BrokerClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BrokerClient(key={self._key_id})"

    def _check_room(self, size: int) -> None:
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY:
            self._waiting = self._length()
            self._looked = now
        self._average += (size - self._average) / 20 if self._average else size
        if self._waiting >= self._max_waiting or self._waiting * self._average > self._max_bytes:
            raise QueueUnavailable(
                f"{self._waiting} messages wait in the ingress queue", retry_after=5.0
            )

    def _length(self) -> int:
        """Messages in the ingress queue."""
        queue = self._kombu.Queue(INGRESS, channel=self._connection.default_channel)
        try:
            return int(queue.queue_declare(passive=True).message_count)
        except self._connection.channel_errors:
            if self._redis:
                return 0  # an empty list does not exist
            raise  # RabbitMQ would drop what is published to a queue that is not there

    def _publish(self, number: str, published: Published) -> None:
        if self._producer is None:
            self._producer = self._kombu.Producer(self._connection.channel(), auto_declare=False)
        embed: Mapping[str, None] = {
            "callbacks": None,
            "errbacks": None,
            "chain": None,
            "chord": None,
        }
        self._producer.publish(
            encode([[published], {}, embed]),
            routing_key=INGRESS,
            exchange="",
            content_type="application/json",
            content_encoding="utf-8",
            headers={
                "lang": "py",
                "task": TASK,
                "id": number,
                "root_id": number,
                "parent_id": None,
                "group": None,
                "argsrepr": "",
                "kwargsrepr": "",
                "retries": 0,
                "eta": None,
                "expires": None,
                "timelimit": [None, None],
                "ignore_result": True,
                "origin": "mailweir-client",
            },
            correlation_id=number,
            delivery_mode=2,
            retry=False,
            timeout=self._timeout,
        )
        self._waiting += 1

    def _drop(self) -> None:
        """Forget a connection that failed; the next call opens another."""
        self._producer = None
        self._looked = 0.0
        self._connection.collect(socket_timeout=1)
