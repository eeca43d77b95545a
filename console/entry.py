"""Entry points of the processes: settings built once, parts put together, run until told to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType

import structlog

from console.opening import clock_of
from mailweir.contracts.job import Bucket
from mailweir.plumbing import keys
from mailweir.plumbing.heap import settle_heap
from mailweir.plumbing.settings import Settings, load
from mailweir.plumbing.telemetry import configure_logging, serve_metrics

log = structlog.get_logger(__name__)


class Stop:
    """Set by SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self.event = threading.Event()
        signal.signal(signal.SIGTERM, self._set)
        signal.signal(signal.SIGINT, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.event.set()

    def __call__(self) -> bool:
        return self.event.is_set()


def start(process: str) -> Settings:
    """Settings and logging of this process."""
    settings = load()
    configure_logging(settings.log_level, process)
    return settings


def run_state() -> None:
    """Become the private state server (its pid is this process')."""
    from mailweir.plumbing.server import become

    become(start("state"))


def run_web() -> None:
    """Serve API, webhooks, unsubscribe and console."""
    import uvicorn

    from console.assembly.web import web_parts
    from console.web import build

    settings = start("web")
    with ExitStack() as stack:
        parts, database = web_parts(settings, clock_of(settings), stack)
        uvicorn.run(
            build(parts, database),
            host=settings.web.host,
            port=settings.web.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=10,
        )


def run_smtp() -> None:
    """Serve the SMTP door."""
    from console.assembly.smtp import serve_smtp

    settings = start("smtp")
    with ExitStack() as stack:
        serve_smtp(settings, clock_of(settings), stack, Stop())


def run_ingress() -> None:
    """Accept what was published to the ingress queue."""
    from console.assembly.ingress import ingress_door
    from producer.doors.ingress import run

    settings = start("ingress")
    with ExitStack() as stack:
        door = ingress_door(settings, clock_of(settings), stack)
        run(settings, door.accept, door.bury, Stop())


def run_router(buckets: Sequence[Bucket]) -> None:
    """Route the jobs of these buckets."""
    from console.assembly.router import router_loop

    settings = start(f"router-{'-'.join(buckets)}")
    if Bucket.TRANSACTIONAL not in buckets:
        os.nice(settings.worker.nice)
    with ExitStack() as stack:
        loop = router_loop(settings, clock_of(settings), buckets, stack)
        serve_metrics(settings.router.metrics_port)
        settle_heap()
        loop.run(Stop())


def run_worker(queues: Sequence[str], concurrency: int | None) -> None:
    """Become a Celery worker of these queues."""
    # Celery reads it when its pools are imported, which workers.main already causes
    os.environ["CELERY_CUSTOM_WORKER_POOL"] = "workers.pool:TaskPool"
    from workers.main import run

    settings = load()
    known = keys.bucket_queues((settings.region,) if settings.region else ())
    chosen = [f"{q}@{settings.region}" if settings.region and "@" not in q else q for q in queues]
    unknown = sorted(set(chosen) - set(known))
    if unknown or not chosen:
        raise SystemExit(
            f"no queue {', '.join(unknown) or '(none)'}; there are: {', '.join(known)}"
        )
    name = f"worker-{os.getpid()}"
    if not keys.has_transactional(chosen):
        os.nice(settings.worker.nice)
    run(settings, tuple(chosen), concurrency, name)


def run_reputation() -> None:
    """Reputation manager, suppression listener, journal listener."""
    from console.assembly.reputation import reputation_process

    settings = start("reputation")
    with ExitStack() as stack:
        process = reputation_process(settings, clock_of(settings), stack)
        serve_metrics(settings.reputation.metrics_port)
        settle_heap()
        process.run(Stop())


def run_flower() -> None:
    """Become Flower."""
    from console.flower import run
    from console.stack import embedded_settings

    settings = start("flower")
    run(embedded_settings(settings.data))
