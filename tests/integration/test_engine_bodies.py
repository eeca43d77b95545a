"""A mail whose body's disk is away waits for it, says so, and holds up nobody in its chunk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from mailweir.contracts.lifecycle import State
from tests.acceptance.sink import Sink, serving
from tests.integration.engine_rig import Rig, policy_for, settings_for

pytestmark = pytest.mark.needs("redis")
LARGE = b"From: a@news.example\r\nTo: you\r\nSubject: hello\r\n\r\n" + b"large\r\n" * 10_000


@pytest.fixture
def sink() -> Iterator[Sink]:
    with serving(Sink()) as one:
        yield one


async def test_a_mail_waits_for_its_bodys_disk(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis, sink: Sink
) -> None:
    settings = settings_for(tmp_path, redis_url, {"*": [f"127.0.0.1:{sink.port}"]})
    rig = Rig.build(settings, policy_for("sink.example"))
    [large] = rig.accept(["large@sink.example"], body=LARGE)
    [small] = rig.accept(["small@sink.example"])
    [chunk] = rig.settle()
    folder = tmp_path / "spool.db-bodies"
    away = folder.rename(tmp_path / "away")
    async with rig.worker() as worker:
        await worker.engine.work(chunk)
        assert rig.states([small]) == {State.SENT: 1}
        assert rig.states([large]) == {State.HELD: 1}
        held = rig.spool.job(large)
        assert held is not None
        assert held.attempts == 0
        assert held.reason is not None
        assert "see database.bodies" in held.reason
        away.rename(folder)
        with rig.spool.database.write() as conn:
            conn.exec_driver_sql("UPDATE jobs SET due_at = 0 WHERE state = 'held'")
        [again] = rig.settle()
        await worker.engine.work(again)
    assert rig.states([large, small]) == {State.SENT: 2}
    assert sink.stored == {"large@sink.example": 1, "small@sink.example": 1}
