"""The Celery application: one set of settings for every process, on Redis or RabbitMQ.

The spool is the truth, so a message is acknowledged late and may be redelivered; nothing waits in
Celery (no ETA, no retry, no rate limit); no events, no results; JSON only. Why each setting is as it
is: ``docs/decisions/0030-celery.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery, Task, signals
from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default as default_strategy
from kombu.transport import get_transport_cls

from mailweir.plumbing import keys, transport
from mailweir.plumbing.broker import (
    BrokerUnsupported,
    all_queues,
    broker_url,
    declared_queues,
    is_redis,
    transport_options,
)
from mailweir.plumbing.settings import Settings


def strategy(task: Task, app: Celery, consumer: Any) -> Callable[..., Any]:
    """Celery's default strategy behind a check of the message's shape.

    What Celery unpacks without asking would end the worker; an :class:`InvalidTaskError` rejects the
    one message. An ETA, an expiry or a time limit of its own is refused too: no message of ours has one.
    """
    handle = default_strategy(task, app, consumer)

    def checked(message: Any, body: Any, *rest: Any) -> Any:
        headers = message.headers
        payload = message.payload
        if not (isinstance(payload, (list, tuple)) and len(payload) == 3):
            raise InvalidTaskError("the body is not [args, kwargs, embed]")
        args, kwargs, embed = payload
        if not (
            isinstance(args, (list, tuple))
            and isinstance(kwargs, dict)
            and isinstance(embed, (dict, type(None)))
            and isinstance(headers.get("id"), str)
        ):
            raise InvalidTaskError("args, kwargs, embed or id have the wrong type")
        if headers.get("eta") or headers.get("expires"):
            raise InvalidTaskError("a task message must not carry eta or expires")
        if headers.get("timelimit") not in (None, [None, None]):
            raise InvalidTaskError("a task message must not carry a time limit")
        return handle(message, body, *rest)

    return checked


class MailweirTask(Task):  # type: ignore[misc]  # Celery ships no types
    """Base of our tasks: the checked strategy, and acknowledged when the work has an outcome."""

    Strategy = f"{__name__}:strategy"
    acks_late = True
    reject_on_worker_lost = True


class _App(Celery):  # type: ignore[misc]  # Celery ships no types
    task_cls = f"{__name__}:MailweirTask"
    mailweir_settings: Settings


def make_app(settings: Settings) -> Celery:
    """The application for these settings. Raises :class:`BrokerUnsupported`.

    A worker of it consumes what ``-Q`` names and never the ingress queue, whose messages are for the
    ingress consumer. Start it with :func:`worker_arguments`.
    """
    transport.install()
    url = broker_url(settings)
    quorum = not is_redis(url)
    app = _App("mailweir", set_as_current=False, broker=url)
    app.mailweir_settings = settings
    app.conf.update(
        task_queues=declared_queues(settings, quorum=quorum),
        task_default_queue=all_queues(settings)[0],
        task_default_exchange="",
        task_default_exchange_type="direct",
        task_create_missing_queues=False,
        task_default_queue_type="quorum" if quorum else "classic",
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        task_soft_time_limit=settings.worker.task_soft_time_limit,
        task_time_limit=settings.worker.task_time_limit,
        task_publish_retry=False,
        task_send_sent_event=False,
        worker_send_task_events=False,
        worker_prefetch_multiplier=1,
        worker_eta_task_limit=100,
        worker_disable_rate_limits=True,
        worker_soft_shutdown_timeout=0,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=False,
        worker_hijack_root_logger=False,
        worker_concurrency=settings.worker.concurrency,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_acquire_timeout=5,
        broker_heartbeat=30,
        broker_transport_options=transport_options(settings, url),
    )
    if is_redis(url):
        used = app.connection_for_write().transport_cls
        if used not in transport.ALIASES or get_transport_cls(used) is not transport.Transport:
            raise BrokerUnsupported(f"the broker transport is {used}, not ours")
    return app


def settings_of(app: Celery) -> Settings:
    """The settings an application of :func:`make_app` was made with."""
    settings = getattr(app, "mailweir_settings", None)
    if not isinstance(settings, Settings):
        raise TypeError("this Celery application was not made by mailweir.plumbing.celery.make_app")
    return settings


def worker_arguments(queues: tuple[str, ...], *, name: str, concurrency: int) -> list[str]:
    """Arguments of ``celery -A MODULE`` for a worker of these queues with our pool.

    Needs ``CELERY_CUSTOM_WORKER_POOL=workers.pool:TaskPool`` in its environment.
    """
    return [
        *("worker", "-P", "custom", "-c", str(concurrency), "-Q", ",".join(queues)),
        *("-n", f"{name}@%h", "--without-gossip", "--without-mingle", "-l", "WARNING"),
    ]


def _leave_ingress_alone(instance: Any = None, **_: object) -> None:
    """A worker started without -Q takes the bucket queues only."""
    if instance is not None and isinstance(instance.app, _App):
        instance.app.amqp.queues.deselect([keys.INGRESS])


def keep_logging() -> None:
    """Have Celery leave this process' logging as it is; else it sets the root logger's level to its own,
    whatever ours is."""
    signals.setup_logging.connect(_keep, weak=False)


def _keep(**_: object) -> None:
    """A receiver is all that Celery asks for."""


signals.celeryd_init.connect(_leave_ingress_alone, weak=False)
