"""Publishing to the ingress queue: real broker, real consumer, real spool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from mailweir.contracts.submit import Published
from mailweir.plumbing import apikeys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.publisher import Publisher
from mailweir.plumbing.settings import load
from producer import errors
from producer.broker import BrokerClient
from producer.doors.ingress import IngressConsumer
from producer.doors.ingress_lines import open_line
from producer.message import Message
from producer.published import PublishedDoor
from tests.services.door import Door, open_door

MESSAGE = Message(from_="a@acme.test", to="b@x.test", subject="s", text="hi")


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path) as door:
        yield door


@pytest.fixture
def broker(redis_clean: redis.Redis, redis_url: str) -> str:
    return "redis+socket" + redis_url.removeprefix("unix").partition("?")[0] + "?virtual_host=1"


def consume(door: Door, broker: str) -> None:
    settings = load(door.settings.data, broker={"url": broker})
    line = open_line(settings, broker)
    desk = PublishedDoor(door.reception, door.keys, door.database, Clock())
    consumer = IngressConsumer(line, desk.accept, desk.bury, batch=100)
    while consumer.step():
        pass
    line.leave()


def dead(door: Door) -> list[str]:
    with door.database.read() as conn:
        return [row[0] for row in conn.exec_driver_sql("SELECT reason FROM dead_letters")]


def test_published_messages_are_accepted(door: Door, broker: str) -> None:
    with BrokerClient(broker, door.key) as client:
        results = [client.send(MESSAGE, to=f"u{i}@x.test") for i in range(20)]
        assert {result.status for result in results} == {"published"}
    consume(door, broker)
    assert door.spool.counts() == {"transactional": {"accepted": 20}}
    assert dead(door) == []


def test_a_payload_seen_again_is_the_same_message(
    door: Door, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads: list[bytes] = []
    with BrokerClient(broker, door.key) as client:
        monkeypatch.setattr(
            client, "_publish", lambda _, p: payloads.append(msgspec.json.encode(p))
        )
        client.send(MESSAGE)
    accept = PublishedDoor(door.reception, door.keys, door.database, Clock()).accept
    assert accept(payloads) == [None]
    assert accept(payloads * 2) == [None, None]
    assert door.spool.counts() == {"transactional": {"accepted": 1}}


def test_what_cannot_be_proven_or_accepted_is_a_dead_letter(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads: list[Published] = []
    with BrokerClient("redis+socket:///nowhere", door.key) as client:
        monkeypatch.setattr(client, "_check_room", lambda _: None)  # no broker here
        monkeypatch.setattr(client, "_publish", lambda _, p: payloads.append(p))
        client.send(MESSAGE)
        client.send(MESSAGE, to="not an address")
    good, refused = payloads
    change = msgspec.structs.replace
    other = apikeys.create(door.database, tenant="other")
    cases = [
        change(good, body=good.body.replace("hi", "ho")),
        change(good, mac="0" * 64),
        change(good, at=good.at + 1),
        change(good, id="1" * 32),
        change(good, key=other[3:15]),
        change(good, key="nobody"),
        refused,
    ]
    accept = PublishedDoor(door.reception, door.keys, door.database, Clock()).accept
    reasons = accept(
        [b"junk", b"\xff", *map(msgspec.json.encode, cases), msgspec.json.encode(good)]
    )
    assert all(reasons[:-1])
    assert reasons[-1] is None
    assert "signature" in str(reasons[2])
    assert str(reasons[-2]).startswith("to[0]")
    assert all("not an address" not in str(reason) for reason in reasons)
    assert door.spool.counts() == {"transactional": {"accepted": 1}}


def test_a_full_queue_and_a_missing_broker_say_try_again(door: Door, broker: str) -> None:
    settings = load(door.settings.data, broker={"url": broker})
    publisher = Publisher(settings)
    with BrokerClient(broker, door.key, max_waiting=3) as client:
        for _ in range(3):
            client.send(MESSAGE)
        with pytest.raises(errors.QueueUnavailable) as caught:
            client.send(MESSAGE)
        assert caught.value.retryable
    assert publisher.waiting().count == 3
    publisher.close()
    with (
        BrokerClient("redis://127.0.0.1:9/0", door.key) as client,
        pytest.raises(errors.QueueUnavailable),
    ):
        client.send(MESSAGE)
    with BrokerClient(broker, door.key) as client, pytest.raises(errors.PayloadTooLarge):
        client.send(MESSAGE, text="x" * 2_000_000)
