"""The same pool on RabbitMQ: quorum queues, static prefetch, requeue when the connection goes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailweir.plumbing import broker as broker_parts
from mailweir.plumbing import celery as plumbing
from mailweir.plumbing.settings import Settings
from tests.integration.pool_bench import PATIENCE, QUEUE, Bench, wait_for
from tests.services.rabbitmq import RabbitMQ


@pytest.fixture
def bench(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Bench]:
    settings = Settings.model_validate(
        {"data": tmp_path, "broker": {"url": rabbitmq.url, "management": rabbitmq.management}}
    )
    it = Bench(settings, tmp_path, {"MAILWEIR_BROKER__URL": rabbitmq.url})
    yield it
    it.close()
    with plumbing.make_app(settings).connection_for_write() as connection:
        for queue in (
            *broker_parts.declared_queues(settings, quorum=True),
            broker_parts.dead_queue(),
        ):
            queue(connection.default_channel).delete()


def test_warm_stop_lets_all_end(bench: Bench) -> None:
    worker = bench.worker()
    for name in "abc":
        bench.send(name, until=str(bench.go))
    for name in "abc":
        bench.until(f"begin {name}")
    worker.send_signal(signal.SIGTERM)
    bench.until("stopping")
    bench.go.touch()
    assert worker.wait(PATIENCE) == 0, bench.log()
    assert {"end a", "end b", "end c", "closed True"} <= set(bench.seen())
    wait_for(bench.empty, "nothing waits, nothing is unacknowledged")


def test_kill_9_is_delivered_again_at_once(bench: Bench) -> None:
    first = bench.worker()
    for name in "ab":
        bench.send(name, until=str(bench.go))
        bench.until(f"begin {name}")
    first.kill()
    first.wait()
    wait_for(lambda: bench.publisher.depths([QUEUE])[QUEUE] == 2, "requeued")
    bench.go.touch()
    bench.worker()
    bench.until("end a")
    bench.until("end b")
    wait_for(bench.empty, "acknowledged")


def test_cold_stop_gives_messages_back(bench: Bench) -> None:
    worker = bench.worker()
    for name in "ab":
        bench.send(name, until=str(bench.go))
        bench.until(f"begin {name}")
    worker.send_signal(signal.SIGQUIT)
    worker.wait(PATIENCE)
    assert {"cancelled a", "cancelled b", "closed True"} <= set(bench.seen())
    wait_for(lambda: bench.publisher.depths([QUEUE])[QUEUE] == 2, "requeued")


def test_prefetch_is_the_number_of_slots(bench: Bench) -> None:
    """What a worker cannot start stays in the queue, where another worker finds it."""
    bench.worker(concurrency=2)
    for name in "abcde":
        bench.send(name, until=str(bench.go))
    bench.until("begin a")
    bench.until("begin b")
    wait_for(lambda: bench.publisher.depths([QUEUE])[QUEUE] == 3, "three stay")
    bench.go.touch()
    for name in "abcde":
        bench.until(f"end {name}")
    wait_for(bench.empty, "acknowledged")
