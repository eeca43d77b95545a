"""The ingress consumer in real processes on both brokers: nothing is lost, nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from mailweir.plumbing import broker as broker_parts
from mailweir.plumbing import celery as plumbing
from mailweir.plumbing import keys
from mailweir.plumbing.envelope import ACCEPT_TASK, DELIVER_TASK, TaskMessage, task_message
from mailweir.plumbing.publisher import Publisher
from mailweir.plumbing.settings import Settings
from tests.services.rabbitmq import RabbitMQ
from tests.services.stopped import stop

PATIENCE = 90.0  # seconds any wait may take: when to give up, no claim
LEASE = 1.0


def wait_for(what: Callable[[], object], why: str) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, f"not within {PATIENCE:g} s: {why}"
        time.sleep(0.02)


class Door:
    """Consumers of one ingress queue and what they accepted."""

    def __init__(self, settings: Settings, folder: Path, env: dict[str, str]) -> None:
        self.settings = settings
        self.folder = folder
        self.env = env
        self.publisher = Publisher(settings)
        self.consumers: list[subprocess.Popen[bytes]] = []

    def consumer(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.ingress_consumer", str(self.folder)],
                env={**os.environ, **self.env, "MAILWEIR_DATA": str(self.folder)},
                stdout=log,
                stderr=log,
            )
        self.consumers.append(process)
        wait_for(lambda: str(process.pid) in self.lines("started"), "consumer up")
        return process

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def publish(self, *ids: str) -> None:
        self.publisher.send([message(id) for id in ids])

    def accepted(self, *ids: str) -> None:
        wait_for(lambda: set(ids) <= set(self.lines("accepted")), f"{ids} accepted")

    def close(self) -> None:
        for process in self.consumers:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self.publisher.close()


def message(id: str) -> TaskMessage:
    return task_message(keys.INGRESS, ACCEPT_TASK, id, {"id": id, "body": "{}"})


@pytest.fixture(params=["redis", "rabbitmq"])
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Door]:
    made: dict[str, object] = {"data": tmp_path, "ingress": {"batch": 10, "lease": LEASE}}
    env = {"MAILWEIR_INGRESS__BATCH": "10", "MAILWEIR_INGRESS__LEASE": str(LEASE)}
    if request.param == "redis":
        request.getfixturevalue("redis_clean")
        url = str(request.getfixturevalue("redis_url"))
        made["redis"] = {"url": url}
        env["MAILWEIR_REDIS__URL"] = url
    else:
        server: RabbitMQ = request.getfixturevalue("rabbitmq")
        made["broker"] = {"url": server.url}
        env["MAILWEIR_BROKER__URL"] = server.url
    settings = Settings.model_validate(made)
    it = Door(settings, tmp_path, env)
    try:
        yield it
    finally:
        it.close()
        if request.param == "rabbitmq":
            with plumbing.make_app(settings).connection_for_write() as connection:
                queues = broker_parts.declared_queues(settings, quorum=True)
                for queue in (*queues, broker_parts.dead_queue()):
                    queue(connection.default_channel).delete()


def empty(door: Door) -> bool:
    return door.publisher.waiting().count == 0


def claims(redis_url: str) -> list[bytes]:
    """Claimed lists that are not empty."""
    with redis.Redis.from_url(redis_url.replace("db=0", "db=1")) as client:
        return list(client.scan_iter(match=keys.INGRESS_CLAIMED.format(consumer="*")))


def test_twenty_times_stop_publish_kill(door: Door) -> None:
    """What stock kombu loses every time: it pops for a process that will never read."""
    consumer = door.consumer()
    for number in range(20):
        stop(consumer.pid)
        door.publish(f"m{number}")
        consumer.kill()
        consumer.wait()
        consumer = door.consumer()
    ids = [f"m{number}" for number in range(20)]
    door.accepted(*ids)
    assert Counter(door.lines("accepted")) == Counter(ids)
    wait_for(lambda: empty(door), "the queue is empty")


def test_kill_in_the_middle_of_a_flood(door: Door) -> None:
    ids = [f"m{number:04}" for number in range(1500)]
    consumer = door.consumer()
    for begin in range(0, len(ids), 300):
        # it stands still while they come: where publishing is slow it would be through with all of them
        stop(consumer.pid)
        known = len(door.lines("accepted"))
        door.publish(*ids[begin : begin + 300])
        consumer.send_signal(signal.SIGCONT)
        wait_for(lambda known=known: len(door.lines("accepted")) > known, "progress")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        consumer.kill()
        consumer.wait()
        consumer = door.consumer()
    door.accepted(*ids)
    assert Counter(door.lines("accepted")) == Counter(ids)


def test_what_is_no_submission_becomes_a_dead_letter(door: Door) -> None:
    door.consumer()
    door.publisher.send([task_message(keys.INGRESS, DELIVER_TASK, "x", {"id": "x"})])
    door.publish("good", "forged")
    door.publisher.send([TaskMessage(keys.INGRESS, {"task": ACCEPT_TASK, "id": "y"}, b"not json")])
    door.publish("last")
    door.accepted("good", "last")
    wait_for(lambda: len(door.lines("buried")) >= 3, "dead letters")
    reasons = [line.split(" ", 1)[1] for line in door.lines("buried")]
    assert sum("calls another task" in reason for reason in reasons) == 1
    assert sum("the mac is wrong" in reason for reason in reasons) == 1
    assert sum("no task message" in reason for reason in reasons) == 1
    assert "forged" not in door.lines("accepted")
    wait_for(lambda: empty(door), "the queue is empty")


def test_while_the_spool_is_down_nothing_is_removed(door: Door) -> None:
    down = door.folder / "database-is-down"
    down.touch()
    consumer = door.consumer()
    door.publish("a", "b")
    wait_for(lambda: "no database" in (door.folder / "log").read_text(), "it tries")
    assert door.lines("accepted") == []
    consumer.terminate()  # it gives back what it holds
    assert consumer.wait(PATIENCE) == 0
    wait_for(lambda: door.publisher.waiting().count == 2, "both are back")
    down.unlink()
    door.consumer()
    door.accepted("a", "b")


def test_one_that_cannot_be_stored_holds_up_nobody(door: Door) -> None:
    door.consumer()
    door.publish("a", "poison", *(f"m{number}" for number in range(30)))
    door.accepted("a", *(f"m{number}" for number in range(30)))
    assert "poison" not in door.lines("accepted")


@pytest.mark.parametrize("door", ["redis"], indirect=True)
def test_a_stopped_consumer_loses_its_claim_and_no_message_is_doubled(
    door: Door, redis_url: str
) -> None:
    """Stopped with a claim in hand, taken over after its lease, then continued."""
    down = door.folder / "database-is-down"
    down.touch()
    first = door.consumer()
    ids = [f"m{number}" for number in range(10)]
    door.publish(*ids)
    wait_for(lambda: claims(redis_url), "claimed")
    stop(first.pid)
    down.unlink()
    door.publish("later")
    door.consumer()
    door.accepted(*ids, "later")
    first.send_signal(signal.SIGCONT)
    door.publish("after")
    door.accepted("after")
    wait_for(lambda: not claims(redis_url), "no claim is left")
    assert Counter(door.lines("accepted")) == Counter([*ids, "later", "after"])


@pytest.mark.parametrize("door", ["redis"], indirect=True)
def test_garbage_in_the_list_is_buried(door: Door, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url.replace("db=0", "db=1")) as client:
        for entry in (b"\xff\xfe", b"5", b"{}", b'{"body":"%","headers":{},"properties":{}}'):
            client.lpush(keys.CELERY_PREFIX + keys.INGRESS, entry)
    door.publish("good")
    door.consumer()
    door.accepted("good")
    wait_for(lambda: len(door.lines("buried")) == 4, "all four are kept")
    assert all("no Celery message" in line for line in door.lines("buried"))


@pytest.mark.parametrize("door", ["rabbitmq"], indirect=True)
def test_what_the_broker_gave_up_is_buried(door: Door) -> None:
    door.publisher.send([message("ok")])
    dead = task_message(broker_parts.INGRESS_DEAD, ACCEPT_TASK, "d", {"id": "d"})
    door.publisher.send([dead])
    door.consumer()
    door.accepted("ok")
    wait_for(lambda: len(door.lines("buried")) == 1, "buried")
    assert "delivered it too often" in door.lines("buried")[0]
