"""The asyncio pool in real ``celery worker`` processes on a private Redis: how it stops, above all."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from mailweir.plumbing.envelope import DELIVER_TASK, redis_entry, task_message
from mailweir.plumbing.settings import Settings
from tests.integration.pool_bench import PATIENCE, QUEUE, Bench, wait_for


@pytest.fixture
def bench(redis_url: str, redis_clean: redis.Redis, tmp_path: Path) -> Iterator[Bench]:
    settings = Settings.model_validate(
        {"data": tmp_path, "redis": {"url": redis_url}, "broker": {"visibility_timeout": 60}}
    )
    it = Bench(settings, tmp_path, {"MAILWEIR_REDIS__URL": redis_url})
    yield it
    it.close()


@pytest.fixture
def broker(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the broker's database."""
    with redis.Redis.from_url(redis_url.replace("db=0", "db=1")) as client:
        yield client


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
    seen = bench.seen()
    assert {"end a", "end b", "end c", "closed True"} <= set(seen)
    assert seen[-1] == "closed True"
    assert bench.empty()


def test_warm_stop_cancels_at_the_deadline(bench: Bench) -> None:
    worker = bench.worker(drain=6.0)
    bench.send("stuck", until=str(bench.go))
    bench.send("tidy", until=str(bench.go), tidy=True)
    bench.until("begin stuck")
    bench.until("begin tidy")
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == 0, bench.log()
    assert time.monotonic() - began < 12
    assert {"cancelled stuck", "tidied tidy", "closed True"} <= set(bench.seen())
    # one ended in order and is acknowledged, the other's message went back
    assert bench.publisher.depths([QUEUE])[QUEUE] == 1
    assert bench.publisher.unacked() == 0


@pytest.mark.parametrize("hang", ["loop", "thread"])
def test_the_deadline_holds_whatever_hangs(bench: Bench, hang: str) -> None:
    worker = bench.worker(drain=2.0, MW_HANG=hang)
    bench.send("a", until=str(bench.go))
    bench.until("begin a")
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == 1, bench.log()
    assert 2 <= time.monotonic() - began < 15
    assert "pool_app.py" in bench.log() or "thread.py" in bench.log(), "every thread's stack"
    assert "Timeout (0:00:05)!" in bench.log()


def test_cold_stop_gives_messages_back(bench: Bench) -> None:
    worker = bench.worker()
    for name in "abc":
        bench.send(name, until=str(bench.go))
    for name in "abc":
        bench.until(f"begin {name}")
    worker.send_signal(signal.SIGQUIT)
    worker.wait(PATIENCE)
    assert {"cancelled a", "cancelled b", "cancelled c", "closed True"} <= set(bench.seen())
    assert bench.publisher.depths([QUEUE])[QUEUE] == 3
    assert bench.publisher.unacked() == 0


def test_kill_9_is_delivered_again(bench: Bench, broker: redis.Redis) -> None:
    first = bench.worker()
    bench.send("a", until=str(bench.go))
    bench.until("begin a")
    first.kill()
    first.wait()
    assert bench.publisher.unacked() == 1
    # older than the visibility timeout, without waiting for it
    broker.zadd("mwq:unacked_index", {broker.zrange("mwq:unacked_index", 0, 0)[0]: 1})
    bench.go.touch()
    bench.worker()
    bench.until("end a")
    wait_for(bench.empty, "nothing left")


def test_failures_are_acknowledged_and_the_worker_goes_on(bench: Bench) -> None:
    bench.worker()
    bench.send("1", **{"raise": "error"})
    bench.send("2", **{"raise": "reject"})
    bench.send("3", **{"raise": "ignore"})
    bench.send("4", task="test.plain")
    bench.send("5")
    bench.until("plain 4")
    bench.until("end 5")
    wait_for(bench.empty, "nothing left")
    assert "as asked" in bench.log()


def test_time_limits(bench: Bench) -> None:
    bench.worker()
    bench.send("kind", task="test.limited")
    bench.send("deaf", task="test.limited", deaf=True)
    bench.until("soft kind")
    bench.until("hard deaf")
    assert "hard kind" not in bench.seen()
    wait_for(bench.empty, "both acknowledged: a time limit decides no job's fate")
    wait_for(lambda: "Hard time limit (2s) exceeded" in bench.log(), "hard limit reported")
    bench.send("after")
    bench.until("end after")


def test_revoke_terminates(bench: Bench) -> None:
    bench.worker()
    bench.send("a", until=str(bench.go))
    bench.until("begin a")
    bench.app.control.revoke("id-a", terminate=True)
    bench.until("cancelled a")
    wait_for(bench.empty, "a revoked message is acknowledged")
    bench.send("b")
    bench.until("end b")


def test_revoke_before_a_slot_is_free(bench: Bench) -> None:
    bench.worker(concurrency=1)
    inspect = bench.app.control.inspect(timeout=5)
    bench.send("a", until=str(bench.go))
    bench.until("begin a")
    bench.app.control.broadcast("pool_grow", arguments={"n": 1}, reply=True, timeout=5)
    bench.app.control.broadcast("pool_shrink", arguments={"n": 1}, reply=True, timeout=5)
    assert inspect.active()
    bench.send("b", until=str(bench.go))
    bench.app.control.revoke("id-b", reply=True, timeout=5)
    bench.go.touch()
    bench.until("end a")
    wait_for(bench.empty, "the revoked one is gone too")
    assert "begin b" not in bench.seen()


def test_grow_shrink_and_inspect(bench: Bench) -> None:
    bench.worker(concurrency=1)
    control = bench.app.control
    for name in "abc":
        bench.send(name, until=str(bench.go))
    bench.until("begin a")
    assert [line for line in bench.seen() if line.startswith("begin")] == ["begin a"]
    (reply,) = control.broadcast("pool_grow", arguments={"n": 2}, reply=True, timeout=10, limit=1)
    assert "ok" in next(iter(reply.values()))
    bench.until("begin b")
    bench.until("begin c")
    inspect = control.inspect(timeout=10, limit=1)
    (stats,) = inspect.stats().values()
    assert stats["pool"]["max-concurrency"] == 3
    assert stats["pool"]["running"] == 3
    (active,) = inspect.active().values()
    assert {task["id"] for task in active} == {"id-a", "id-b", "id-c"}
    control.broadcast("pool_shrink", arguments={"n": 5}, reply=True, timeout=10, limit=1)
    (stats,) = inspect.stats().values()
    assert stats["pool"]["max-concurrency"] == 1
    bench.go.touch()
    bench.until("end c")
    bench.send("d")
    bench.until("end d")
    assert not [line for line in bench.seen() if line.startswith("wrong-context")]


GARBAGE = {
    "no-json": b"\xff\xfe{{{",
    "json-number": b"5",
    "empty-object": b"{}",
    "no-base64": redis_entry(task_message(QUEUE, DELIVER_TASK, "x", 1)).replace(
        b'"body":"', b'"body":"A'
    ),
    "task-is-a-list": redis_entry(task_message(QUEUE, DELIVER_TASK, "x", 1)).replace(
        b'"task":"workers.deliver"', b'"task":["workers.deliver"]'
    ),
    "unknown-task": redis_entry(task_message(QUEUE, "no.such.task", "x", 1)),
    "pickle": redis_entry(task_message(QUEUE, DELIVER_TASK, "x", 1)).replace(
        b"application/json", b"application/x-python-serialize"
    ),
    "id-is-a-number": redis_entry(task_message(QUEUE, DELIVER_TASK, "x", 1)).replace(
        b'"id":"x"', b'"id":7'
    ),
    "eta": redis_entry(task_message(QUEUE, DELIVER_TASK, "x", 1)).replace(
        b'"eta":null', b'"eta":"2999-01-01T00:00:00"'
    ),
    "timelimit": redis_entry(task_message(QUEUE, DELIVER_TASK, "x", 1)).replace(
        b'"timelimit":[null,null]', b'"timelimit":5'
    ),
    "body-is-no-list": redis_entry(task_message(QUEUE, DELIVER_TASK, "x", 1)).replace(
        redis_entry(task_message(QUEUE, DELIVER_TASK, "x", 1)).split(b'"body":"')[1].split(b'"')[0],
        b"NQ==",
    ),
    "wrong-argument": redis_entry(task_message(QUEUE, DELIVER_TASK, "x", [1])),
}


def test_garbage_kills_no_worker(bench: Bench, broker: redis.Redis) -> None:
    worker = bench.worker()
    for entry in GARBAGE.values():
        broker.lpush(f"mwq:{QUEUE}", entry)
    bench.send("after")
    bench.until("end after")
    assert worker.poll() is None, bench.log()
    wait_for(bench.empty, "all garbage was taken off")
    assert broker.llen("mwq:garbage") == 5  # what was no message at all is kept
    assert "begin" not in [line.split()[0] for line in bench.seen() if "after" not in line]


def test_a_failing_start_hook_ends_the_worker(bench: Bench) -> None:
    bench.worker()
    with pytest.raises(AssertionError):
        bench.worker(MW_WITNESS="/nonexistent/witness")
    assert bench.workers[1].wait(PATIENCE) != 0
