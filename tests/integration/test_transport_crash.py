"""A broker that dies under a worker: the worker lives, and goes on when the broker is back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from mailweir.plumbing import keys
from mailweir.plumbing.server import Server, start
from mailweir.plumbing.settings import Settings
from tests.integration.pool_bench import Bench, wait_for


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Settings, list[Server]]]:
    """Settings with a server of their own, to be killed."""
    settings = Settings.model_validate({"data": tmp_path, "broker": {"visibility_timeout": 60}})
    servers = [start(settings)]
    yield settings, servers
    for server in servers:
        server.stop()


def test_five_broker_kills_with_tasks_in_flight(
    own: tuple[Settings, list[Server]], tmp_path: Path
) -> None:
    settings, servers = own
    bench = Bench(settings, tmp_path, {})
    try:
        worker = bench.worker()
        for number in range(5):
            go = tmp_path / f"go{number}"
            names = [f"{number}{letter}" for letter in "abc"]
            for name in names:
                bench.send(name, until=str(go))
            for name in names:
                bench.until(f"begin {name}")
            servers[-1].process.kill()
            servers[-1].process.wait()
            go.touch()  # the tasks end, and their acknowledgements have no channel
            for name in names:
                bench.until(f"end {name}")
            servers.append(start(settings))
            assert worker.poll() is None, bench.log()
        bench.send("last")
        bench.until("end last")
        assert worker.poll() is None, bench.log()
        # what could not be acknowledged is delivered again once its time is over, and done again
        with redis.Redis(unix_socket_path=str(servers[-1].socket), db=1) as client:
            index = f"{keys.CELERY_PREFIX}unacked_index"

            def all_acknowledged() -> bool:
                for tag, score in client.zrange(index, 0, -1, withscores=True):
                    if score > 1:
                        client.zadd(index, {tag: 1}, xx=True)
                return bench.empty()

            wait_for(all_acknowledged, f"everything acknowledged: {client.keys()}")
    finally:
        bench.close()
