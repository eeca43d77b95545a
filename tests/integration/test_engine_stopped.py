"""A way that reputation or an operator stopped takes nothing more, whatever was routed there before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from mailweir.contracts.lifecycle import State
from mailweir.contracts.policy import Provider
from mailweir.contracts.snapshot import PathState, Snapshot
from mailweir.plumbing import keys
from tests.acceptance.sink import OK, Sink, serving
from tests.integration.engine_rig import FAST, LONGEST, Rig, policy_for, settings_for
from workers.engine_build import Worker

pytestmark = pytest.mark.needs("redis")
SOON = 2.0  # real seconds in which a worker knows: "in force within 2 s" (mailweir pause); it looks every 0.5
MAILS = 120  # six seconds of them


def slowly(recipient: str, times: int) -> str:
    """Twenty recipients a second, whoever asks."""
    time.sleep(0.05)
    return OK


@pytest.fixture
def sink(redis_clean: redis.Redis) -> Iterator[Sink]:
    with serving(Sink(rcpt=slowly)) as one:
        yield one


@pytest.fixture
def rig(tmp_path: Path, redis_url: str, sink: Sink) -> Rig:
    providers = {
        name: Provider(name, connections=1, per_connection=1000, rate=FAST, cold_rate=FAST)
        for name in ("other", "sink.example")
    }
    settings = settings_for(tmp_path, redis_url, {"*": [f"127.0.0.1:{sink.port}"]})
    policy = msgspec.structs.replace(policy_for(), providers=providers)
    relayed = msgspec.structs.replace(policy.pools["default"], relays=("mx2",))
    return Rig.build(settings, msgspec.structs.replace(policy, pools={"default": relayed}))


def publish(rig: Rig, version: int, paths: dict[str, PathState], paused: dict[str, float]) -> None:
    snapshot = Snapshot(version, rig.clock.now(), 1, paths, paused)
    rig.client.set(keys.SNAPSHOT, msgspec.json.encode(snapshot))
    rig.client.set(keys.SNAPSHOT_VERSION, str(version))


async def seen(worker: Worker, version: int) -> None:
    async with asyncio.timeout(LONGEST):
        while worker.engine.parts.views.snapshot.version != version:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["suspended", "paused"])
async def test_in_the_middle_of_a_chunk(rig: Rig, sink: Sink, how: str) -> None:
    ids = rig.accept([f"u{i}@sink.example" for i in range(MAILS)])
    [chunk] = rig.settle(size=MAILS)
    async with rig.worker() as worker:
        work = asyncio.create_task(worker.engine.work(chunk))
        async with asyncio.timeout(LONGEST):
            while len(sink.times("stored")) < 5:
                await asyncio.sleep(0.01)
        stopped = time.time()
        if how == "suspended":
            publish(rig, 7, {"mx1|sink.example|bulk": PathState(state="suspended")}, {})
        else:
            publish(rig, 7, {}, {"bucket:bulk": rig.clock.now() + 600})
        await work
        back = time.time()
        # over again: the rest goes by the same source
        publish(rig, 8, {}, {})
        await seen(worker, 8)
        states = rig.states(ids)
        late = [at - stopped for at in sink.times("rcpt") if at > stopped]
        assert max(late, default=0.0) < SOON, max(late)
        assert back - stopped < 2 * SOON
        assert states[State.SENT] + states[State.DUE] == MAILS
        assert states[State.DUE] > 25
        waiting = [job for job in map(rig.spool.job, ids) if job and job.state == State.DUE]
        reasons = {job.reason for job in waiting}
        assert reasons == {
            "mx1 is suspended at sink.example: routed anew"
            if how == "suspended"
            else "bucket:bulk is paused: routed anew"
        }
        assert all(job.attempts == 0 and (job.due_at or 0.0) < back + 1.5 for job in waiting)
        async with asyncio.timeout(LONGEST):
            while rig.states(ids) != {State.SENT: MAILS}:
                for rest in rig.settle():
                    await worker.engine.work(rest)
                await asyncio.sleep(0.05)  # between two looks at what is due
    assert sink.stored == {f"u{i}@sink.example": 1 for i in range(MAILS)}


async def test_before_its_chunk_was_taken(rig: Rig, sink: Sink) -> None:
    """Nobody is dialled. A paused pool's fallback relay goes on."""
    publish(rig, 7, {"mx1|sink.example|bulk": PathState(state="suspended")}, {})
    ids = rig.accept(["a@sink.example", "b@sink.example"])
    [chunk] = rig.settle()
    other = rig.accept(["c@elsewhere.example"])
    [free] = rig.settle()
    async with rig.worker() as worker:
        await seen(worker, 7)
        await worker.engine.work(chunk)
        assert sink.times("connect") == []
        assert rig.states(ids) == {State.DUE: 2}
        await worker.engine.work(free)
        publish(rig, 8, {}, {"pool:default": rig.clock.now() + 600})
        await seen(worker, 8)
        by_relay = rig.accept(["d@sink.example"])
        for chunk in rig.settle(source="mx2"):
            await worker.engine.work(chunk)
    assert rig.states([*other, *by_relay]) == {State.SENT: 2}
