"""RabbitMQ stands still (a paused machine, a half-open line): who asks it gets an error in time, and goes on
when it does. Stopped, it still accepts connections and answers nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mailweir.contracts.ids import new_id
from mailweir.contracts.job import Bucket
from mailweir.contracts.route import Chunk
from mailweir.plumbing import broker as broker_parts
from mailweir.plumbing import celery as plumbing
from mailweir.plumbing import keys
from mailweir.plumbing.publisher import BrokerUnavailable, Publisher, PublishFailed
from mailweir.plumbing.settings import Settings
from producer.broker import BrokerClient
from producer.doors.ingress_lines import LineDown, open_line
from producer.errors import QueueUnavailable
from producer.message import Message
from tests.services.rabbitmq import RabbitMQ
from tests.services.stopped import group_members, stop

TIMEOUT = 3.0  # setting broker.socket_timeout; a broker that goes on has a queue declared in less
KEY = "mw_000000000000.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
# that, two vain attempts to connect, 3 s each and 2 s between, and as much for a busy machine; without a
# timeout it would be for ever
IN_TIME = 25.0


@pytest.fixture
def settings(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Settings]:
    made = Settings.model_validate(
        {"data": tmp_path, "broker": {"url": rabbitmq.url, "socket_timeout": TIMEOUT}}
    )
    yield made
    with plumbing.make_app(made).connection_for_write() as connection:
        for queue in (
            *broker_parts.declared_queues(made, quorum=True),
            broker_parts.dead_queue(),
        ):
            queue(connection.default_channel).delete()


@contextmanager
def standing_still(server: RabbitMQ) -> Iterator[None]:
    stop(*group_members(server.group))
    began = time.monotonic()
    try:
        yield
        assert time.monotonic() - began < IN_TIME
    finally:
        os.killpg(server.group, signal.SIGCONT)


def chunk() -> Chunk:
    return Chunk(new_id(), Bucket.BULK, "bulk", "s", (1,))


def test_the_router_is_told(rabbitmq: RabbitMQ, settings: Settings) -> None:
    publisher = Publisher(settings)
    publisher.publish([chunk()])
    with standing_still(rabbitmq), pytest.raises(BrokerUnavailable):
        publisher.depths(["bulk"])
    publisher.publish([chunk()])
    with standing_still(rabbitmq), pytest.raises(PublishFailed) as failed:
        publisher.publish([chunk()])
    assert failed.value.uncertain, "it may have it"
    assert publisher.depths(["bulk"])["bulk"] >= 2
    publisher.close()


def test_a_service_is_told(rabbitmq: RabbitMQ, settings: Settings) -> None:
    publisher = Publisher(settings)
    publisher.depths([keys.INGRESS])  # declares the queues
    publisher.close()
    message = Message(from_="a@acme.example", to="b@example.net", subject="s", text="hi")
    with BrokerClient(rabbitmq.url, KEY, timeout=TIMEOUT) as client:
        client.send(message)
        with standing_still(rabbitmq), pytest.raises(QueueUnavailable):
            client.send(message)
        client.send(message)


def test_the_ingress_consumer_is_told(rabbitmq: RabbitMQ, settings: Settings) -> None:
    line = open_line(settings, rabbitmq.url)
    assert line.claim() == []
    line.leave()
    with standing_still(rabbitmq), pytest.raises(LineDown):
        line.claim()
    assert line.claim() == []
    line.leave()
