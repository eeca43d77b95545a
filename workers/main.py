"""Entry of a worker process: Celery's own worker with our pool, for a set of bucket queues."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

from mailweir.plumbing import keys
from mailweir.plumbing.celery import keep_logging, make_app, worker_arguments
from mailweir.plumbing.settings import Settings
from mailweir.plumbing.telemetry import configure_logging

POOL = "workers.pool:TaskPool"


def usual(settings: Settings, queues: Sequence[str]) -> int:
    """Chunks at once of a process that works these queues."""
    if keys.has_transactional(queues):
        return settings.worker.concurrency
    return settings.worker.concurrency_bulk


def run(
    settings: Settings, queues: Sequence[str], concurrency: int | None = None, name: str = "worker"
) -> NoReturn:
    """Work these queues until a stop is asked for; ends the process (SIGTERM: warm, SIGQUIT: cold).

    ``concurrency``: chunks at once; default: the setting for such queues. ``name`` is unique among the
    workers of one host.
    """
    os.environ["CELERY_CUSTOM_WORKER_POOL"] = POOL  # read when Celery's pools are imported
    from workers.tasks import register

    configure_logging(settings.log_level, name)
    keep_logging()
    app = register(make_app(settings))
    arguments = worker_arguments(
        tuple(queues), name=name, concurrency=concurrency or usual(settings, queues)
    )
    app.worker_main(arguments)
    raise SystemExit(0)
