"""What proves a chunk lost, on real brokers: an empty queue that nobody holds anything of, or a later chunk."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from mailweir.contracts.lifecycle import State
from mailweir.contracts.route import Chunk
from mailweir.plumbing import broker as broker_parts
from mailweir.plumbing import celery as plumbing
from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import migrate, open_database
from mailweir.plumbing.publisher import Publisher
from mailweir.plumbing.settings import Settings
from mailweir.spool.store import Spool
from router.policy.default import default_policy
from router.reconciler import Reconciler
from simulator.ports import free_port
from tests.contract.spool.helpers import accept, message, real_times, route, send, state_of, take
from tests.services.rabbitmq import RabbitMQ

LOST_AFTER = 0.2  # real seconds
SURELY = 60.0  # real seconds in which what may happen at any time has happened
QUEUE = "bulk"


class Rig:
    """A spool with dispatched chunks and a reconciler that looks at a real broker."""

    def __init__(self, folder: Path, client: redis.Redis, settings: dict[str, Any]) -> None:
        self.settings = Settings.model_validate(
            {
                "data": folder,
                "router": {"lost_after": LOST_AFTER, "reconcile_every": 0.01},
                **settings,
            }
        )
        database = open_database(self.settings)
        migrate(database)
        self.spool = Spool(database)
        self.publisher = Publisher(self.settings)
        policy = default_policy({})
        self.reconciler = Reconciler(
            self.spool,
            self.publisher,
            client,
            lambda: policy,
            Clock(),
            self.settings.router,
            lambda: (QUEUE,),
            3,
        )

    def dispatched(self) -> int:
        """A job whose chunk the broker never had."""
        (job,) = accept(self.spool)
        route(self.spool, queue=QUEUE)
        return job

    def stays(self, job: int) -> bool:
        """Whether the job is dispatched after many looks."""
        return self.look(job, LOST_AFTER * 8) == State.DISPATCHED

    def look(self, job: int, seconds: float = SURELY) -> str:
        """The job's state once it is freed, or after many looks."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and state_of(self.spool, job) == State.DISPATCHED:
            self.reconciler.turn()
            time.sleep(0.02)
        return state_of(self.spool, job)

    def close(self) -> None:
        self.publisher.close()
        self.spool.database.close()


@pytest.fixture
def rabbit(
    rabbitmq: RabbitMQ, redis_clean: redis.Redis, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Rig]:
    management = rabbitmq.management if request.param else f"http://127.0.0.1:{free_port()}"
    broker = {"url": rabbitmq.url, "management": management}
    rig = Rig(tmp_path, redis_clean, {"broker": broker})
    yield rig
    with plumbing.make_app(rig.settings).connection_for_write() as connection:
        for queue in (
            *broker_parts.declared_queues(rig.settings, quorum=True),
            broker_parts.dead_queue(),
        ):
            queue(connection.default_channel).delete()
    rig.close()


@pytest.mark.parametrize("rabbit", [False], indirect=True, ids=["without-management"])
def test_rabbitmq_that_does_not_tell_what_is_held(rabbit: Rig) -> None:
    job = rabbit.dispatched()
    assert rabbit.stays(job), "emptiness proved something"
    accept(rabbit.spool)
    (later,) = route(rabbit.spool, queue=QUEUE)
    real_times(
        rabbit.spool, f"UPDATE chunks SET published_real = published_real - 9 WHERE id < {later.id}"
    )
    take(rabbit.spool, later)
    assert rabbit.look(job) == State.DUE


@pytest.mark.parametrize("rabbit", [True], indirect=True, ids=["with-management"])
def test_rabbitmq_that_tells_what_is_held(rabbit: Rig) -> None:
    job = rabbit.dispatched()
    # the management API is some seconds behind
    assert rabbit.look(job) == State.DUE


@pytest.fixture
def redis_rig(redis_clean: redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, redis_clean, {"redis": {"url": redis_url}})
    yield rig
    rig.close()


def held(rig: Rig, age: float, queue: str = QUEUE) -> None:
    """A worker took a message ``age`` real seconds ago and has not acknowledged it."""
    with redis.Redis.from_url(
        broker_parts.redis_url(broker_parts.broker_url(rig.settings))
    ) as broker:
        broker.zadd(f"{keys.CELERY_PREFIX}unacked_index", {"tag": time.time() - age})
        broker.hset(f"{keys.CELERY_PREFIX}unacked", "tag", json.dumps([{}, "", queue]))


def test_what_a_live_worker_may_hold_is_not_lost(redis_rig: Rig) -> None:
    job = redis_rig.dispatched()
    held(redis_rig, 1)
    assert redis_rig.stays(job)


def test_what_a_killed_worker_left_behind_proves_nothing_against_it(redis_rig: Rig) -> None:
    job = redis_rig.dispatched()
    worker = redis_rig.settings.worker
    held(redis_rig, worker.chunk_seconds + worker.lease + 1)
    assert redis_rig.look(job) == State.DUE


def test_what_is_held_of_another_queue_proves_nothing_against_it(redis_rig: Rig) -> None:
    job = redis_rig.dispatched()
    held(redis_rig, 1, "transactional")
    assert redis_rig.look(job) == State.DUE


def test_a_chunk_lost_between_two_looks_is_lost(redis_rig: Rig) -> None:
    for _ in range(3):  # the queue is known to be empty before
        redis_rig.reconciler.turn()
        time.sleep(0.02)
    assert redis_rig.look(redis_rig.dispatched()) == State.DUE


def test_20000_jobs_that_wait_30_minutes_in_a_slow_queue_are_dispatched_once(
    redis_rig: Rig,
) -> None:
    """A chunk of 50 is taken every 45 s, in order; the reconciler looks at the real queue all the time."""
    spool, queue = redis_rig.spool, keys.CELERY_PREFIX + QUEUE
    for _ in range(20):
        spool.accept([message(*[f"u{i}@gmail.com" for i in range(1000)])])
    chunks: list[Chunk] = []
    while some := route(spool, size=50, limit=2000, queue=QUEUE):
        chunks += some
    assert sum(len(chunk.jobs) for chunk in chunks) == 20_000
    redis_rig.publisher.publish(chunks)
    with redis.Redis.from_url(
        broker_parts.redis_url(broker_parts.broker_url(redis_rig.settings))
    ) as broker:
        for step, chunk in enumerate(chunks[:40]):
            real_times(
                spool,
                "UPDATE chunks SET published_real = published_real - 45, taken_real = taken_real - 45",
            )
            time.sleep(0.02)  # router.reconcile_every, twice
            assert redis_rig.reconciler.turn() == 0, f"after {(step + 1) * 45} s"
            taken = broker.rpop(queue)
            assert isinstance(taken, bytes)
            send(spool, chunk)
        assert broker.llen(queue) == len(chunks) - 40
    assert spool.counts()[QUEUE] == {"sent": 2000, "dispatched": 18_000}
    assert spool.window().queues == {QUEUE: 18_000}
    # the same queue, its messages gone: then all of them are lost, and are seen to be
    with redis.Redis.from_url(
        broker_parts.redis_url(broker_parts.broker_url(redis_rig.settings))
    ) as broker:
        broker.delete(queue)
    assert redis_rig.look(chunks[-1].jobs[0]) == State.DUE
    assert spool.counts()[QUEUE] == {"sent": 2000, "due": 18_000}
