"""What a bucket queue loses is dispatched again within 15 s of being provably lost, and sent once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import redis

from mailweir.plumbing import keys
from mailweir.plumbing.redis import socket_path
from tests.acceptance.house import House, house

JOBS = 150
PROOF = 15.0  # router.lost_after: real seconds until a loss counts as proven
AGAIN = 15.0  # within which what is proven lost goes out again
ALL_AT_ONCE = {"MAILWEIR_ROUTER__CHUNK": "5", "MAILWEIR_ROUTER__WINDOW_MIN": str(JOBS + 50)}
BULK = "run worker --queues marketing"
WORKERS = 2
TRANSACTIONAL = "run worker --queues transactional"
ROUTER = "run router --buckets transactional"


def dispatches(home: House) -> Counter[int]:
    """How often each job was routed."""
    database = home.database()
    try:
        with database.read() as conn:
            rows = conn.exec_driver_sql("SELECT job_id FROM decisions WHERE outcome = 'routed'")
            return Counter(int(row[0]) for row in rows)
    finally:
        database.close()


def pushes(broker: redis.Redis) -> int:
    """How often somebody pushed to a list of the server."""
    told = broker.info("commandstats").get("cmdstat_lpush", {"calls": 0})
    return int(told["calls"])


def consuming(broker: redis.Redis) -> int:
    """How many workers wait for messages."""
    return sum(c["cmd"] == "brpop" and "b" in c["flags"] for c in broker.client_list())


def test_what_a_queue_loses_is_dispatched_again(tmp_path: Path) -> None:
    with (
        house(tmp_path, env=ALL_AT_ONCE) as home,
        redis.Redis(unix_socket_path=str(socket_path(home.data)), db=1) as broker,
    ):
        queue = keys.CELERY_PREFIX + "bulk"
        home.wait("the workers", lambda: consuming(broker) >= WORKERS)
        pid = home.kill(BULK, signal.SIGSTOP)
        home.send([f"user{i}@gmail.com" for i in range(JOBS)], "bulk")
        home.wait("all of them dispatched", lambda: home.states()["dispatched"] == JOBS)
        home.wait("waiting chunks", lambda: broker.llen(queue) > 20)
        assert broker.delete(queue) == 1
        os.kill(pid, signal.SIGCONT)
        begun = time.monotonic()
        states = home.wait_ended(JOBS)
        assert time.monotonic() - begun < PROOF + AGAIN
        assert states["sent"] == JOBS, states
        assert set(Counter(r["recipient"] for r in home.witness()).values()) == {1}
        assert len(home.witness()) == JOBS
        times = dispatches(home)
        assert max(times.values()) == 2
        assert sum(count == 2 for count in times.values()) > JOBS / 2


def test_a_chunk_popped_by_a_worker_that_dies_is_dispatched_again(tmp_path: Path) -> None:
    # stock kombu pops a message before it books it: a worker stopped in BRPOP takes it to its grave
    with (
        house(tmp_path) as home,
        redis.Redis(unix_socket_path=str(socket_path(home.data)), db=1) as broker,
    ):
        sent: list[str] = []
        taken = 0
        while taken < 2:
            home.wait("the workers", lambda: consuming(broker) >= WORKERS)
            sent.append(f"user{len(sent)}@gmail.com")
            before = pushes(broker)
            with home.standing_still(
                ROUTER
            ):  # so that the message comes soon after the worker's stop
                home.send(sent[-1:])
                pid = home.kill(TRANSACTIONAL, signal.SIGSTOP)
            home.wait("its message", lambda known=before: pushes(broker) > known)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            popped = not broker.exists(keys.CELERY_PREFIX + "transactional")
            with suppress(ProcessLookupError):  # a supervisor that saw it stand still was first
                os.kill(pid, signal.SIGKILL if popped else signal.SIGCONT)
            # a BRPOP lasts a second: where the message came after it, nobody took it, and it is tried anew
            assert len(sent) < 30, "never popped"
            taken += popped
            begun = time.monotonic()
            home.wait_ended(len(sent))
            assert time.monotonic() - begun < PROOF + AGAIN
        assert Counter(r["recipient"] for r in home.witness()) == Counter(sent)
