"""Publishing on both real brokers: what arrives, what is counted, what a failure says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from mailweir.contracts.ids import format_id, new_ids
from mailweir.contracts.job import Bucket
from mailweir.contracts.route import Chunk
from mailweir.plumbing import broker as broker_parts
from mailweir.plumbing import celery as plumbing
from mailweir.plumbing import keys
from mailweir.plumbing.envelope import ACCEPT_TASK, task_message
from mailweir.plumbing.publisher import (
    BrokerUnavailable,
    Publisher,
    PublishFailed,
    QueueFull,
)
from mailweir.plumbing.server import start
from mailweir.plumbing.settings import Settings
from tests.services.rabbitmq import RabbitMQ


def chunks(count: int, queue: str = "bulk") -> list[Chunk]:
    return [
        Chunk(id, Bucket.BULK, queue, "s1", tuple(range(index, index + 50)))
        for index, id in enumerate(new_ids(count))
    ]


@pytest.fixture(params=["redis", "rabbitmq"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings for one broker, with empty queues."""
    if request.param == "redis":
        request.getfixturevalue("redis_clean")
        url = str(request.getfixturevalue("redis_url"))
        yield Settings.model_validate({"data": tmp_path, "redis": {"url": url}})
        return
    server: RabbitMQ = request.getfixturevalue("rabbitmq")
    made = Settings.model_validate(
        {
            "data": tmp_path,
            "broker": {"url": server.url, "management": server.management},
            "ingress": {"max_waiting": 5},
        }
    )
    yield made
    app = plumbing.make_app(made)
    with app.connection_for_write() as connection:
        for queue in (*broker_parts.declared_queues(made, quorum=True), broker_parts.dead_queue()):
            queue(connection.default_channel).delete()


def test_chunks_arrive_whole_and_in_order(settings: Settings) -> None:
    publisher = Publisher(settings)
    published = chunks(7)
    publisher.publish(published)
    queues = broker_parts.all_queues(settings)
    assert len(queues) == 6
    assert publisher.depths(queues) == {**dict.fromkeys(queues, 0), "bulk": 7}
    app = plumbing.make_app(settings)
    with app.connection_for_read() as connection:
        queue = app.amqp.queues["bulk"](connection.default_channel)
        for chunk in published:
            message = queue.get()
            assert message.headers["task"] == "workers.deliver"
            assert message.headers["id"] == format_id(chunk.id)
            assert message.headers["argsrepr"] == ""
            ((argument,), kwargs, _) = message.decode()
            assert argument["jobs"] == list(chunk.jobs)
            assert (argument["id"], kwargs) == (chunk.id, {})
            message.ack()
        assert queue.get() is None
    assert publisher.depths(["bulk", "no-such-queue"]) == {"bulk": 0, "no-such-queue": 0}
    publisher.close()


def test_a_queue_that_came_with_a_policy_takes_messages(settings: Settings) -> None:
    """Of a region that was not configured when the process started: RabbitMQ drops what goes to a queue
    that nobody declared."""
    publisher = Publisher(settings)
    publisher.publish(chunks(2))
    publisher.publish([*chunks(1), *chunks(3, "bulk@late")])
    assert publisher.depths(["bulk", "bulk@late"]) == {"bulk": 3, "bulk@late": 3}
    publisher.close()
    if not broker_parts.is_redis(broker_parts.broker_url(settings)):
        with plumbing.make_app(settings).connection_for_write() as connection:
            broker_parts.declared_queue("bulk@late", quorum=True)(
                connection.default_channel
            ).delete()


def test_unacked_counts_what_workers_hold(settings: Settings) -> None:
    publisher = Publisher(settings)
    publisher.publish(chunks(5))
    app = plumbing.make_app(settings)
    with app.connection_for_read() as connection:
        queue = app.amqp.queues["bulk"](connection.default_channel)
        held = [queue.get() for _ in range(2)]
        assert all(held)
        # RabbitMQ's management API is some seconds behind
        end = time.monotonic() + 60
        while publisher.unacked() != 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert publisher.depths(["bulk"]) == {"bulk": 3}
    publisher.close()


def test_ingress_waiting(settings: Settings) -> None:
    publisher = Publisher(settings)
    assert publisher.waiting().count == 0
    publisher.send(
        [task_message(keys.INGRESS, ACCEPT_TASK, str(i), "x" * 10_000) for i in range(5)]
    )
    waiting = publisher.waiting()
    assert waiting.count == 5
    assert waiting.bytes is None or 50_000 < waiting.bytes < 120_000
    publisher.close()


def test_rabbitmq_refuses_a_full_ingress_queue(
    rabbitmq: RabbitMQ, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = Settings.model_validate(
        {
            "data": tmp_path,
            "broker": {"url": rabbitmq.url, "management": rabbitmq.management},
            "ingress": {"max_waiting": 5},
        }
    )
    publisher = Publisher(settings)
    one = task_message(keys.INGRESS, ACCEPT_TASK, "1", "x")
    with pytest.raises(QueueFull) as refused:
        publisher.send([one] * 20)
    assert not refused.value.uncertain
    publisher.publish(chunks(1))  # the other queues are open
    with plumbing.make_app(settings).connection_for_write() as connection:
        for queue in (
            *broker_parts.declared_queues(settings, quorum=True),
            broker_parts.dead_queue(),
        ):
            queue(connection.default_channel).delete()
    publisher.close()


def test_redis_that_is_full_refuses_for_certain(
    redis_url: str, redis_clean: redis.Redis, tmp_path: Path
) -> None:
    publisher = Publisher(Settings.model_validate({"data": tmp_path, "redis": {"url": redis_url}}))
    redis_clean.config_set("maxmemory", "1mb")
    try:
        # Redis checks its memory before a command, so one publish may pass the limit
        with pytest.raises(QueueFull) as refused:  # noqa: PT012 - which of these fails is its choice
            for _ in range(10):
                publisher.publish(chunks(1000))
        assert not refused.value.uncertain
    finally:
        redis_clean.config_set("maxmemory", "0")
    publisher.publish(chunks(1))
    publisher.close()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "amqp://guest:secret-word@127.0.0.1:1//"])
def test_no_broker_is_a_certain_failure(url: str, tmp_path: Path) -> None:
    publisher = Publisher(
        Settings.model_validate({"data": tmp_path, "broker": {"url": SecretStr(url)}})
    )
    with pytest.raises(PublishFailed) as failed:
        publisher.publish(chunks(1))
    assert not failed.value.uncertain
    assert "secret-word" not in str(failed.value)
    with pytest.raises(BrokerUnavailable):
        publisher.depths(["bulk"])
    publisher.close()


def test_publisher_outlives_a_restart_of_redis(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    publisher = Publisher(settings)
    with start(settings) as server:
        publisher.publish(chunks(3))
        server.process.kill()
        server.process.wait()
        with pytest.raises(PublishFailed):
            publisher.publish(chunks(1))
    with start(settings):
        publisher.publish(chunks(1))
        assert publisher.depths(["bulk"]) == {"bulk": 4}
    publisher.close()


def test_redis_that_hangs_is_uncertain(redis_url: str, redis_clean: redis.Redis) -> None:
    settings = Settings.model_validate(
        {"redis": {"url": redis_url}, "broker": {"socket_timeout": 1.0}}
    )
    publisher = Publisher(settings)
    publisher.publish(chunks(1))
    # the next reply to a write is late; PING is answered
    redis_clean.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
    with pytest.raises(PublishFailed) as failed:
        publisher.publish(chunks(1))
    assert failed.value.uncertain
    redis_clean.execute_command("CLIENT", "UNPAUSE")
    publisher.close()
