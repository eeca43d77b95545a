"""kombu's Redis transport with one client per channel, and without a message that kills a worker.

Stock kombu builds a client object twice per message (a quarter of a worker's CPU); here a channel
keeps one. Stock kombu also dies of, or reconnects for ever over, a list entry that is no message;
here such an entry is put aside in a list of its own, counted and logged without its content.

Installed under the aliases ``redis`` and ``rediss``, so that URLs stay the ones Celery and Flower know:
``broker_transport`` is ignored by Celery, and a scheme of our own is not understood by Flower.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

import structlog
from kombu import transport as kombu_transports
from kombu.transport import redis as stock
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from prometheus_client import Counter

ALIASES = ("redis", "rediss")
GARBAGE = "garbage"
"""List, under Celery's key prefix, of entries that were no messages; the newest 1,000."""
_GARBAGE_KEPT = 1000

log = structlog.get_logger(__name__)
garbage_total = Counter(
    "mailweir_broker_garbage", "Entries of a Celery queue that were no messages.", ["queue"]
)


def parse_message(entry: bytes) -> dict[str, Any] | None:
    """The message of a list entry, or None when kombu could not make one of it."""
    try:
        message = loads(bytes_to_str(entry))
        if is_message(message):
            base64.b64decode(message["body"]).decode()
            return dict(message)
    except ValueError:  # no UTF-8, no JSON, no base 64
        return None
    return None


def is_message(entry: object) -> bool:
    """Whether a decoded list entry has the fields kombu and Celery read without asking."""
    if not isinstance(entry, dict) or not isinstance(entry.get("headers"), dict):
        return False
    properties = entry.get("properties")
    return (
        isinstance(entry.get("body"), str)
        and isinstance(entry["headers"].get("task", ""), str)
        and isinstance(properties, dict)
        and isinstance(properties.get("delivery_tag"), str)
        and isinstance(properties.get("delivery_info"), dict)
        and isinstance(properties["delivery_info"].get("exchange"), str)
        and isinstance(properties["delivery_info"].get("routing_key"), str)
        and properties.get("body_encoding") == "base64"
    )


class Channel(stock.Channel):  # type: ignore[misc]  # kombu ships no types
    """A channel with one cached client, which is thread-safe as redis-py's clients are."""

    _calls: Any = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        if client is not None:
            yield client
            return
        if getattr(self.connection, "client", None) is None:
            # An acknowledgement for a channel that a broker crash closed: stock kombu raises
            # AttributeError, which ends the worker; a connection error is logged, and the message
            # comes back.
            raise stock.exceptions.ConnectionError("the channel is closed")
        if self._calls is None:
            self._calls = self._create_client()
        yield self._calls

    def _disconnect_pools(self) -> None:
        self._calls = None  # it belongs to the pool that is closed here (also after a fork)
        super()._disconnect_pools()

    def _brpop_read(self, **options: Any) -> bool:
        # kombu 5.7's own, except that what is no message is put aside instead of raising ValueError
        # (which ends the worker) or KeyError (which makes it reconnect). Guarded by a test.
        try:
            try:
                reply = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            if not reply:
                raise Empty
            key, entry = reply
            queue = bytes_to_str(key).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            message = parse_message(entry)
            if message is None:
                self._put_aside(queue, entry)
                raise Empty
            self.connection._deliver(message, queue)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _put_aside(self, queue: str, entry: bytes) -> None:
        garbage_total.labels(queue).inc()
        log.error("queue_entry_is_no_message", queue=queue, bytes=len(entry))
        with self.conn_or_acquire() as client:
            client.lpush(GARBAGE, entry)
            # LTRIM is not among the commands kombu prefixes
            client.ltrim(self.global_keyprefix + GARBAGE, 0, _GARBAGE_KEPT - 1)


class Transport(stock.Transport):  # type: ignore[misc]  # kombu ships no types
    """The Redis transport with our channel."""

    Channel = Channel


def install() -> None:
    """Put our transport in the place of kombu's under both Redis aliases, for this process."""
    for alias in ALIASES:
        kombu_transports.TRANSPORT_ALIASES[alias] = f"{__name__}:Transport"
        kombu_transports._transport_cache.pop(alias, None)
