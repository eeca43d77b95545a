"""The broker as every process sees it, publishers too: its URL, its queues, its transport's options.

Apart from :mod:`mailweir.plumbing.celery`, because importing Celery takes a third of a second that only workers
and Flower need.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

from kombu import Exchange, Queue

from mailweir.plumbing import keys
from mailweir.plumbing.redis import socket_path
from mailweir.plumbing.settings import Settings

INGRESS_DEAD = "ingress.dead"
"""RabbitMQ only: where the broker itself moves an ingress message it will not deliver again."""


class BrokerUnsupported(Exception):
    """The broker URL has a scheme that is neither Redis nor AMQP."""


def broker_url(settings: Settings) -> str:
    """Celery's broker URL. It may hold a password: never log it.

    Default: database 1 of the state server. ``unix://`` is written the way kombu and Flower read it,
    ``redis+socket://PATH?virtual_host=DB``. Raises :class:`BrokerUnsupported`.
    """
    if settings.broker.url is not None:
        return _checked(settings.broker.url.get_secret_value())
    if settings.redis.url is not None:
        return _checked(_with_database(settings.redis.url.get_secret_value(), 1))
    return f"redis+socket://{quote(str(socket_path(settings.data)))}?virtual_host=1"


def is_redis(url: str) -> bool:
    """Whether a broker URL names Redis (or Valkey)."""
    return urlsplit(url).scheme in ("redis", "rediss", "redis+socket")


def redis_url(url: str) -> str:
    """A Redis broker URL as redis-py reads it."""
    parts = urlsplit(url)
    if parts.scheme != "redis+socket":
        return url
    database = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    return f"unix://{parts.netloc}{parts.path}?db={database}"


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        database = parse_qs(parts.query).get("db", ["0"])[0]
        return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={database}"
    if not is_redis(url) and parts.scheme not in ("amqp", "amqps"):
        raise BrokerUnsupported(
            f"broker.url has the scheme {parts.scheme or '(none)'}; "
            "use redis://, rediss://, redis+socket://, amqp:// or amqps://"
        )
    if parts.scheme == "rediss" and "ssl_cert_reqs" not in parse_qs(parts.query):
        # kombu speaks plain text to a rediss:// URL that says nothing about certificates
        return url + ("&" if parts.query else "?") + "ssl_cert_reqs=required"
    return url


def _with_database(url: str, database: int) -> str:
    parts = urlsplit(url)
    if parts.scheme in ("unix", "redis+socket"):
        name = "db" if parts.scheme == "unix" else "virtual_host"
        return f"{parts.scheme}://{parts.netloc}{parts.path}?{name}={database}"
    return urlunsplit(parts._replace(path=f"/{database}"))


def all_queues(settings: Settings) -> tuple[str, ...]:
    """The bucket queues of this installation and the ingress queue: what Flower shows."""
    regions = (settings.region,) if settings.region else ()
    return (*(str(name) for name in keys.bucket_queues(regions)), keys.INGRESS)


def declared_queue(name: str, *, quorum: bool, **arguments: object) -> Queue:
    """A queue as kombu declares it; on RabbitMQ a quorum queue."""
    return Queue(
        name,
        exchange=Exchange(""),
        routing_key=name,
        durable=True,
        queue_arguments={"x-queue-type": "quorum", **arguments} if quorum else None,
    )


def declared_queues(settings: Settings, *, quorum: bool) -> list[Queue]:
    """The queues as kombu declares them; on RabbitMQ quorum queues.

    There the ingress queue refuses publishers at its limits, and a message delivered too often moves
    to :data:`INGRESS_DEAD` at least once. A chunk delivered too often may go: its jobs are rows.
    """

    queues = [declared_queue(name, quorum=quorum) for name in all_queues(settings)[:-1]]
    if quorum:
        queues.append(
            declared_queue(
                keys.INGRESS,
                quorum=True,
                **{
                    "x-max-length": settings.ingress.max_waiting,
                    "x-max-length-bytes": settings.ingress.max_bytes,
                    "x-overflow": "reject-publish",
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-routing-key": INGRESS_DEAD,
                    "x-dead-letter-strategy": "at-least-once",
                },
            )
        )
    else:
        queues.append(declared_queue(keys.INGRESS, quorum=False))
    return queues


def dead_queue() -> Queue:
    """RabbitMQ's dead-letter queue of the ingress queue."""
    return Queue(
        INGRESS_DEAD,
        exchange=Exchange(""),
        routing_key=INGRESS_DEAD,
        durable=True,
        queue_arguments={"x-queue-type": "quorum"},
    )


def transport_options(settings: Settings, url: str) -> dict[str, Any]:
    """Transport options; the same in every process, or messages would be restored too early."""
    if not is_redis(url):
        # a broker that stands still (half-open, paused) would hold its callers as long as it does
        still = settings.broker.socket_timeout
        return {
            "confirm_publish": True,
            "connect_timeout": 3,
            "read_timeout": still,
            "write_timeout": still,
        }
    return {
        "visibility_timeout": settings.broker.visibility_timeout,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        # a broker killed while one worker restores keeps its lock; 300 s by default
        "unacked_mutex_expire": 10,
        "socket_timeout": settings.broker.socket_timeout,
        "socket_connect_timeout": settings.redis.connect_timeout,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "priority_steps": [0],
        "global_keyprefix": keys.CELERY_PREFIX,
    }
