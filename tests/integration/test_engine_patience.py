"""How long a chunk may stay because it waits: one setting bounds all its waits for tokens together, one those
for connections; and what was admitted and then waited is not dialled on a path that was shut meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import redis

from mailweir.contracts.lifecycle import State
from mailweir.contracts.policy import Provider, Throttle
from mailweir.contracts.route import Chunk
from mailweir.plumbing import keys
from tests.acceptance.sink import Sink, serving
from tests.integration.engine_rig import FAST, LONGEST, Rig, policy_for, settings_for
from workers.engine_build import Worker

pytestmark = pytest.mark.needs("redis")
WAIT = 1.0
GIVEN_UP = 8.0  # seconds a server that says nothing is listened to
EACH = 60  # mails of a small site
BUSY = 3.0  # seconds a busy machine may add: less than a chunk would stay without the bound


@pytest.fixture
def sink(redis_clean: redis.Redis) -> Iterator[Sink]:
    with serving(Sink()) as one:
        yield one


def build(
    folder: Path,
    redis_url: str,
    sink: Sink,
    *,
    rate: Throttle = FAST,
    connections: int = 8,
    **waits: float,
) -> Rig:
    """``waits``: the worker's settings a scenario is about; every other wait of a chunk is long."""
    providers = {
        name: Provider(
            name, connections=connections, per_connection=1000, rate=rate, cold_rate=rate
        )
        for name in ("other", "sink.example")
    }
    mx_map = {"*": [f"127.0.0.1:{sink.port}"]}
    bounds = {"chunk_token_wait": LONGEST, "chunk_connection_wait": LONGEST, **waits}
    settings = settings_for(folder, redis_url, mx_map, phase=GIVEN_UP, **bounds)
    return Rig.build(settings, msgspec.structs.replace(policy_for(), providers=providers))


async def timed(worker: Worker, chunk: Chunk) -> float:
    begun = time.monotonic()
    await worker.engine.work(chunk)
    return time.monotonic() - begun


async def test_a_chunk_of_small_sites_waits_for_tokens_so_long_in_all(
    tmp_path: Path, redis_url: str, sink: Sink
) -> None:
    """Eight a second to each site: every mail waits less than any mail may, sixty of them over seven
    seconds."""
    rig = build(tmp_path, redis_url, sink, rate=Throttle(480, 60), chunk_token_wait=WAIT)
    ids = rig.accept([f"u{i}@{place}.example" for place in ("sink", "other") for i in range(EACH)])
    async with rig.worker() as worker:
        [chunk] = rig.settle(size=2 * EACH)
        assert await timed(worker, chunk) < WAIT + BUSY
    states = rig.states(ids)
    assert states[State.SENT] >= 2, "it sent what it could"
    assert states[State.SENT] + states[State.HELD] == 2 * EACH
    held = [job for job in map(rig.spool.job, ids) if job is not None and job.state == State.HELD]
    reasons = [job.reason or "" for job in held]
    assert all(job.attempts == 0 for job in held)
    # a busy machine may keep a site waiting for its connection lease, too
    assert all(text.startswith(("throttle: path", "throttle: connections")) for text in reasons), (
        set(reasons)
    )
    assert any("path" in text for text in reasons)
    assert len({job.due_at for job in held}) > 5, "each comes back at its own place in time"


@asynccontextmanager
async def stuck(sink: Sink) -> AsyncIterator[None]:
    """The server takes connections and says nothing, until the block ends."""
    sink.deaf = True
    try:
        yield
    finally:
        sink.deaf = False


async def test_a_chunk_waits_for_a_connection_so_long_in_all(
    tmp_path: Path, redis_url: str, sink: Sink
) -> None:
    """One connection, and it hangs: the others' chunks go back before it is given up."""
    rig = build(tmp_path, redis_url, sink, connections=1, chunk_connection_wait=WAIT)
    first = rig.accept(["first@sink.example"])
    [hung] = rig.settle()
    ids = rig.accept([f"u{i}@sink.example" for i in range(20)])
    [behind] = rig.settle()
    async with rig.worker() as worker, stuck(sink):
        other = asyncio.create_task(worker.engine.work(hung))
        async with asyncio.timeout(LONGEST):
            while not sink.times("connect"):
                await asyncio.sleep(0.01)
        assert await timed(worker, behind) < WAIT + BUSY
        assert not other.done()
        await other
    assert rig.states(first) == {State.DEFERRED: 1}
    assert rig.states(ids) == {State.HELD: 20}
    job = rig.spool.job(ids[0])
    assert job is not None
    assert (job.reason, job.attempts) == ("throttle: connections of mx1", 0)
    assert len(sink.times("connect")) == 1


async def test_a_path_shut_while_a_chunk_waited_for_a_connection_is_not_dialled(
    tmp_path: Path, redis_url: str, sink: Sink, redis_clean: redis.Redis
) -> None:
    rig = build(tmp_path, redis_url, sink, connections=1)
    rig.accept(["first@sink.example"])
    [hung] = rig.settle()
    ids = rig.accept([f"u{i}@sink.example" for i in range(20)])
    [behind] = rig.settle()
    async with rig.worker() as worker, stuck(sink):
        one = asyncio.create_task(worker.engine.work(hung))
        async with asyncio.timeout(LONGEST):
            while not sink.times("connect"):
                await asyncio.sleep(0.01)
            two = asyncio.create_task(worker.engine.work(behind))
            while not any(worker._transport._pool._waiting.values()):
                await asyncio.sleep(0.01)
        now = rig.clock.now()
        path = {"phase": "open", "until": now + 60, "opened": now, "step": 0, "shut": now}
        for name, value in path.items():
            redis_clean.hset(keys.path_state("mx1", "sink.example"), name, str(value))
        await asyncio.gather(one, two)
    assert len(sink.times("connect")) == 1, "the first one's, from before"
    assert rig.states(ids) == {State.DUE: 20}
    job = rig.spool.job(ids[0])
    assert job is not None
    assert (job.reason, job.attempts) == ("path shut: mx1 to sink.example", 0)
