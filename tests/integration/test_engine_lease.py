"""A worker that stood still beyond its lease: what it had begun nobody else has, what it had not it leaves to
those who have it by now (N41)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from mailweir.contracts.lifecycle import State
from mailweir.contracts.route import Chunk
from mailweir.plumbing import keys
from tests.acceptance.sink import OK, Sink, serving
from tests.integration.engine_rig import LONGEST, Rig, policy_for, settings_for, until
from workers.engine_run import Run

pytestmark = pytest.mark.needs("redis")
LEASE = 3.0
MAILS = 80


def slowly(recipient: str, times: int) -> str:
    """Twenty recipients a second, whoever asks."""
    time.sleep(0.05)
    return OK


@pytest.fixture
def sink(redis_clean: redis.Redis) -> Iterator[Sink]:
    with serving(Sink(rcpt=slowly)) as one:
        yield one


def one_chunk(folder: Path, redis_url: str, sink: Sink) -> tuple[Rig, list[int], Chunk]:
    """A rig whose mail goes to the sink, its jobs, and the chunk they are in."""
    mx_map = {"*": [f"127.0.0.1:{sink.port}"]}
    rig = Rig.build(
        settings_for(folder, redis_url, mx_map, lease=LEASE), policy_for("sink.example")
    )
    ids = rig.accept([f"u{i}@sink.example" for i in range(MAILS)])
    [chunk] = rig.settle(size=MAILS)
    return rig, ids, chunk


def marked(rig: Rig, run: Run) -> set[int]:
    """Its jobs that Redis knows to be in data."""
    return {int(job) for job in rig.client.hkeys(keys.in_data(run.chunk.id))}


def unmarked(rig: Rig, run: Run) -> set[int]:
    """Its jobs that have begun and are not marked yet."""
    return (run.pending.keys() & run.began.keys()) - marked(rig, run)


@pytest.mark.parametrize("marked_in_time", [True, False])
async def test_it_sends_nothing_more_before_it_is_told(
    tmp_path: Path,
    redis_url: str,
    sink: Sink,
    monkeypatch: pytest.MonkeyPatch,
    marked_in_time: bool,
) -> None:
    rig, ids, chunk = one_chunk(tmp_path, redis_url, sink)
    told = threading.Event()
    async with rig.worker() as worker:
        spool = worker.engine.parts.spool
        real = spool.renew

        def late(*args: Any) -> Any:
            """A database that takes its time to say that the lease is gone."""
            if rig.spool.expired_leases():
                assert told.wait(LONGEST)
            return real(*args)

        monkeypatch.setattr(spool, "renew", late)
        work = asyncio.create_task(worker.engine.work(chunk))
        await until(lambda: len(sink.times("stored")) >= 3, work)
        run = worker.engine.live[chunk.id]

        if marked_in_time:
            await until(lambda: not unmarked(rig, run), work)
        else:  # it stands still between the commands of a mail and its mark
            rig.client.client_pause(int(LONGEST * 1000), all=False)
            await until(lambda: unmarked(rig, run), work)
        time.sleep(1.5 * LEASE)  # it stands still, and the reconciler frees what it had
        begun = marked(rig, run)
        [lease] = rig.spool.expired_leases()
        due = [job for job in lease.jobs if job not in begun]
        uncertain: dict[int, float | None] = {job: None for job in lease.jobs if job in begun}
        assert len(due) > MAILS / 2
        assert rig.spool.free(chunk.id, uncertain, due, rig.clock.now(), 9) == len(lease.jobs)
        rig.client.client_unpause()
        await until(work.done)
        told.set()
        await work
        for rest in rig.settle():
            await worker.engine.work(rest)
    states = rig.states(ids)
    assert states[State.SENT] + states[State.UNCERTAIN] == MAILS
    assert states[State.UNCERTAIN] <= len(uncertain)
    assert set(sink.stored.values()) == {1}, "sent twice"


async def test_what_the_database_says_is_anothers_is_not_sent(
    tmp_path: Path, redis_url: str, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever our own clock says of the lease: the database's decides."""
    rig, ids, chunk = one_chunk(tmp_path, redis_url, sink)
    async with rig.worker() as worker:
        work = asyncio.create_task(worker.engine.work(chunk))
        await until(lambda: len(sink.times("stored")) >= 3, work)
        run = worker.engine.live[chunk.id]

        rig.client.client_pause(int(LONGEST * 1000), all=False)
        await until(lambda: unmarked(rig, run), work)
        monkeypatch.setattr(worker.engine.parts.spool, "renew", lambda *_: set())
        await until(lambda: run.stopped, work)
        waiting = unmarked(rig, run)
        assert waiting
        rig.client.client_unpause()
        await until(work.done)
        await work
    assert not {f"u{ids.index(job)}@sink.example" for job in waiting} & set(sink.stored)
