"""While outcomes cannot be committed no further mail begins: so few are uncertain when a worker dies (N41)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from mailweir.contracts.lifecycle import State
from tests.acceptance.sink import Sink, serving
from tests.integration.engine_rig import LONGEST, Rig, policy_for, settings_for

pytestmark = pytest.mark.needs("redis")
UNWRITTEN = 5


@pytest.fixture
def sink() -> Iterator[Sink]:
    with serving(Sink()) as one:
        yield one


async def test_a_stalled_spool_stops_new_mails(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis, sink: Sink
) -> None:
    mx_map = {"*": [f"127.0.0.1:{sink.port}"]}
    settings = settings_for(tmp_path, redis_url, mx_map, unwritten=UNWRITTEN)
    rig = Rig.build(settings, policy_for("sink.example"))
    ids = rig.accept([f"u{i}@sink.example" for i in range(50)])
    [chunk] = rig.settle()
    async with rig.worker() as worker:
        blocker = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
        working = asyncio.create_task(worker.engine.work(chunk))
        async with asyncio.timeout(LONGEST):
            while rig.states(ids)[State.SENDING] < 50:  # taken: only outcomes are written now
                await asyncio.sleep(0)
            blocker.execute("BEGIN IMMEDIATE")
            while worker._writer._room.is_set():
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)  # what a worker without such a bound sends the rest in
        begun = len(sink.times("rcpt"))
        blocker.execute("ROLLBACK")
        blocker.close()
        await working
    assert begun < 50, "it did not go on blindly"
    assert rig.states(ids) == {State.SENT: 50}
    assert len(sink.times("stored")) == 50
