"""A door calls, the routers of transactional mail look at once; without Redis they look often."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import redis

from mailweir.plumbing import keys
from mailweir.plumbing.bell import Bell, Ear

LONG = 20.0  # far beyond what a call takes: who returns earlier was called


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as made:
        yield made


def away() -> redis.Redis:
    return redis.Redis.from_url("unix:///nonexistent/mailweir.sock")


def rested(ear: Ear) -> float:
    began = time.monotonic()
    ear.rest(False)
    return time.monotonic() - began


def test_a_call_ends_the_rest(client: redis.Redis, redis_url: str) -> None:
    ear = Ear(client, rung=LONG, alone=0.01)
    bell = Bell(redis.Redis.from_url(redis_url))
    timer = threading.Timer(0.2, bell.ring)
    timer.start()
    assert 0.15 < rested(ear) < LONG / 2
    timer.join()
    bell.close()
    ear.close()


def test_a_call_while_nobody_rests_is_heard_by_the_next_rest_once(
    client: redis.Redis, redis_url: str
) -> None:
    ear = Ear(client, rung=1.0, alone=0.01)
    with redis.Redis.from_url(redis_url) as door:
        for _ in range(5):
            door.publish(keys.RINGS, b"")
    assert rested(ear) < 0.8
    assert rested(ear) >= 0.9, "calls that came together were heard one by one"
    ear.close()


def test_every_router_hears(client: redis.Redis, redis_url: str) -> None:
    ears = [Ear(client, rung=LONG, alone=0.01) for _ in range(2)]
    bell = Bell(redis.Redis.from_url(redis_url))
    bell.ring()
    assert all(rested(ear) < LONG / 2 for ear in ears)
    bell.close()
    for ear in ears:
        ear.close()


def test_a_stream_of_calls_is_worked_off_in_batches(client: redis.Redis) -> None:
    ear = Ear(client, rung=LONG, alone=0.2)
    client.publish(keys.RINGS, b"")
    ear.rest(False)
    client.publish(keys.RINGS, b"")
    assert 0.15 < rested(ear) < LONG / 2
    ear.close()


def test_with_jobs_due_nobody_is_waited_for(client: redis.Redis) -> None:
    ear = Ear(client, rung=LONG, alone=0.01)
    began = time.monotonic()
    ear.rest(True)
    assert time.monotonic() - began < LONG / 2
    ear.close()


def test_without_redis_the_rest_is_short_and_a_call_harmless() -> None:
    bell = Bell(away())
    ear = Ear(away(), rung=LONG, alone=0.05)
    bell.ring()
    ear.rest(False)
    assert 0.04 < rested(ear) < LONG / 2
    bell.close()


def test_a_lost_line_is_made_again(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailweir.plumbing.bell.AGAIN", 0.0)
    ear = Ear(client, rung=LONG, alone=0.01)
    for line in client.client_list(_type="pubsub"):
        client.client_kill_filter(_id=line["id"])
    assert rested(ear) < LONG / 2, "a dead line must not be waited for"
    caller = threading.Thread(target=_call_who_listens, args=(client,))
    caller.start()
    assert rested(ear) < LONG / 2
    caller.join()
    ear.close()


def _call_who_listens(client: redis.Redis) -> None:
    end = time.monotonic() + LONG
    while not client.publish(keys.RINGS, b"") and time.monotonic() < end:
        pass
