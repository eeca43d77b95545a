"""Flower with our queue list: a bucket whose workers are all down keeps its line and its depth.

Stock Flower lists the queues of workers it has seen. Here its two queue views ask our publisher for all
our queues instead, on either broker and without events. Everything else is Flower's own. Written for
Flower 2.2: what is used of it is checked by a test.
"""

from __future__ import annotations

import logging
import secrets
import signal
import time
from collections.abc import Callable
from typing import Any

import structlog
from flower.api.tasks import GetQueueLengths
from flower.app import Flower
from flower.options import default_options
from flower.urls import settings as flower_settings
from flower.views.broker import BrokerView
from tornado.ioloop import IOLoop
from tornado.web import HTTPError

from console.queues import queues_now
from mailweir.plumbing import keys
from mailweir.plumbing.broker import all_queues
from mailweir.plumbing.celery import make_app
from mailweir.plumbing.database import DatabaseUnavailable, open_database
from mailweir.plumbing.install import make_once
from mailweir.plumbing.publisher import BrokerUnavailable, Publisher
from mailweir.plumbing.settings import Settings
from mailweir.spool.store import Spool

log = structlog.get_logger(__name__)

NAMES_EVERY = 1.0  # real seconds


def flower_password(settings: Settings) -> str:
    """The basic-auth password: the setting, or the one made once in ``<data>/flower.password``.

    Raises :class:`mailweir.plumbing.install.InstallError`.
    """
    if settings.flower.password is not None:
        return settings.flower.password.get_secret_value()
    return make_once(settings.data / "flower.password", secrets.token_urlsafe(18))


class Depths:
    """What Flower's views take for a broker: the depth of every queue of ours."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def queues(self, names: list[str]) -> list[dict[str, Any]]:
        """One row per queue, in our order. Raises 503 while the broker does not answer."""
        try:
            depths = await IOLoop.current().run_in_executor(None, self._publisher.depths, names)
        except BrokerUnavailable as error:
            raise HTTPError(503, str(error)) from error
        return [
            {"name": name, "messages": depth, "messages_ready": depth}
            for name, depth in depths.items()
        ]


class _OurQueues:
    """Mixed into Flower's queue views before their own methods."""

    def initialize(self, depths: Depths, names: Callable[[], tuple[str, ...]]) -> None:
        """Tornado's way to hand arguments to a handler."""
        self._depths = depths
        self._names = names

    def get_broker(self) -> Depths:
        return self._depths

    def get_active_queue_names(self) -> list[str]:
        return list(self._names())


class QueuesPage(_OurQueues, BrokerView):  # type: ignore[misc]  # Flower ships no types
    """``/broker``."""


class QueuesApi(_OurQueues, GetQueueLengths):  # type: ignore[misc]  # Flower ships no types
    """``/api/queues/length``."""


class Names:
    """All our queues, ingress last. Regions come from the policy, so where processes have one SQL is asked,
    at most every :data:`NAMES_EVERY`; while it is away the last answer stands."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._names = all_queues(settings)
        self._spool: Spool | None = None
        self._next = 0.0

    def __call__(self) -> tuple[str, ...]:
        if self._settings.region is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + NAMES_EVERY
            try:
                if self._spool is None:
                    self._spool = Spool(open_database(self._settings))
                found = queues_now(self._settings, self._spool.database, self._spool)
            except DatabaseUnavailable as error:
                log.warning("queue names not refreshed", why=str(error))
            else:
                self._names = (*found, keys.INGRESS)
        return self._names


def build(settings: Settings, publisher: Publisher) -> Flower:
    """The Flower application, authenticated, without events, with our queue views in front."""
    options = default_options
    options.basic_auth = [f"{settings.flower.user}:{flower_password(settings)}"]
    options.enable_events = False
    options.address = settings.flower.host
    options.port = settings.flower.port
    app = Flower(capp=make_app(settings), options=options, **flower_settings)
    given = {"depths": Depths(publisher), "names": Names(settings)}
    app.add_handlers(
        ".*", [(r"/broker", QueuesPage, given), (r"/api/queues/length", QueuesApi, given)]
    )
    return app


def run(settings: Settings) -> None:
    """Serve Flower until SIGTERM or SIGINT."""
    logging.getLogger("tornado.access").disabled = True
    publisher = Publisher(settings)
    app = build(settings, publisher)
    port = app.start_http_server()
    log.info("flower_listens", url=f"http://{settings.flower.host}:{port}")

    def stop(*_: object) -> None:
        app.io_loop.add_callback_from_signal(app.stop)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        app.start()
    finally:
        publisher.close()
