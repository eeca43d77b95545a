"""The Celery side of the workers: one task, ``workers.deliver``, and the worker's life in its hooks.

``celery -A workers.tasks worker`` builds the application from the environment (MAILWEIR_*);
``workers.main.run`` hands it settings.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import structlog
from celery import Celery, signals

from mailweir.contracts.route import Chunk
from mailweir.mail.providers import suffix_list
from mailweir.plumbing.celery import make_app, settings_of
from mailweir.plumbing.envelope import DELIVER_TASK
from mailweir.plumbing.heap import settle_heap
from mailweir.plumbing.settings import load
from workers.engine_build import Worker
from workers.pool_hooks import on_drain, on_loop_start, on_stopping

log = structlog.get_logger(__name__)


class _Process:
    """The one worker of this process: known after Celery's setup, alive with its loop."""

    app: Celery | None = None
    name = "worker"
    queues: tuple[str, ...] = ()
    concurrency = 1
    worker: Worker | None = None


async def deliver(chunk: dict[str, Any]) -> None:
    """Deliver a chunk. Returns when every job of it has an outcome or went back."""
    try:
        work = msgspec.convert(chunk, Chunk, strict=True)
    except msgspec.ValidationError as error:
        log.error("not a chunk", error=str(error))
        return
    assert _Process.worker is not None  # built before the first task
    await _Process.worker.engine.work(work)


def register(app: Celery) -> Celery:
    """Make this application's workers deliver."""
    app.task(name=DELIVER_TASK)(deliver)
    _Process.app = app
    return app


def _know(sender: str, instance: Any, **_: object) -> None:
    _Process.name = sender
    _Process.queues = tuple(instance.app.amqp.queues.consume_from)
    _Process.concurrency = int(instance.concurrency)


signals.celeryd_after_setup.connect(_know, weak=False)


@on_loop_start
async def _build() -> None:
    if _Process.app is None:
        return  # another application's worker uses the pool
    worker = Worker(
        settings_of(_Process.app),
        name=_Process.name,
        queues=_Process.queues,
        concurrency=_Process.concurrency,
    )
    suffix_list()  # not while mails wait for the loop
    await worker.start()
    settle_heap()
    _Process.worker = worker


@on_stopping
def _stop() -> None:
    if _Process.worker is not None:
        _Process.worker.stop()


@on_drain
async def _close(seconds: float) -> None:
    worker, _Process.worker = _Process.worker, None
    if worker is not None:
        async with asyncio.timeout(seconds):
            await worker.close()


def __getattr__(name: str) -> Celery:
    """``app`` for Celery's command line, built when it is first asked for."""
    if name != "app":
        raise AttributeError(name)
    app = globals()["app"] = register(make_app(load()))
    return app
