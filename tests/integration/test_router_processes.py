"""Three router processes over one PostgreSQL: shares hold over all of them, a domain keeps its source, no job
goes out twice."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from mailweir.contracts.ids import RANDOM_BITS, SEQUENCE_BITS
from mailweir.plumbing import keys
from mailweir.plumbing.broker import broker_url, redis_url
from tests.integration.router_rig import Rig

POLICY = """
sources:
  a-1: {buckets: [bulk]}
  a-2: {buckets: [bulk]}
  a-3: {buckets: [bulk]}
  b-1: {buckets: [bulk]}
  b-2: {buckets: [bulk]}
pools:
  a: {sources: [a-1, a-2, a-3]}
  b: {sources: [b-1, b-2], sticky: false}
rules:
  - name: split
    action: {pool: {a: 80, b: 20}}
buckets:
  bulk: {recipient_limit: none}
"""
ROUTERS = 3
JOBS = 9_000
LONGEST = 90.0
SECRET = "0123456789abcdef0123456789abcdef"


@contextmanager
def routers(rig: Rig, count: int, log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Router processes as a fleet runs them."""
    settings = rig.settings
    assert settings.redis.url is not None
    assert settings.database.url is not None
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("MAILWEIR_")},
        "MAILWEIR_DATA": str(settings.data),
        "MAILWEIR_SECRET": SECRET,
        "MAILWEIR_DATABASE__URL": settings.database.url,
        "MAILWEIR_REDIS__URL": settings.redis.url.get_secret_value(),
        "MAILWEIR_WORKER__NICE": "0",  # a house of the suite runs beside it
        "MAILWEIR_ROUTER__BATCH": "100",  # so that none takes all at one go
        "MAILWEIR_ROUTER__WINDOW_MIN": "20000",
    }
    command = [sys.executable, "-m", "console", "run", "router", "--buckets", "bulk"]
    with log.open("wb") as out:
        made = [subprocess.Popen(command, env=env, stdout=out, stderr=out) for _ in range(count)]
    try:
        yield made
    finally:
        for process in made:
            process.terminate()
        for process in made:
            process.wait(LONGEST)


def maker(row_id: int) -> int:
    """The node in an id: no two running processes have the same."""
    return (row_id & ((1 << RANDOM_BITS) - 1)) >> SEQUENCE_BITS


def published(rig: Rig) -> list[int]:
    """Ids of the jobs in every message of the broker, with repetitions."""
    broker = redis.Redis.from_url(redis_url(broker_url(rig.settings)))
    found: list[int] = []
    for queue in keys.bucket_queues():
        for entry in broker.lrange(keys.CELERY_PREFIX + queue, 0, -1):
            args, _, _ = json.loads(base64.b64decode(json.loads(entry)["body"]))
            found += args[0]["jobs"]
    broker.close()
    return found


def test_three_processes_share_the_work_and_keep_the_shares(
    tmp_path: Path,
    redis_url: str,
    redis_clean: redis.Redis,
    postgres_new: Callable[[], str],
    postgres_drop: Callable[[str], None],
) -> None:
    url = postgres_new()
    rig = Rig.build(tmp_path, redis_url, POLICY, database={"url": url}, secret=SECRET)
    accepted: list[int] = []

    def wait(what: str, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONGEST
        while not until():
            assert time.monotonic() < deadline, (what, rig.spool.counts(), log.read_text()[-3000:])
            time.sleep(0.05)

    def accept(count: int) -> None:
        first = len(accepted)
        to = [f"u{i}@d{i % 60}.example" for i in range(first, first + count)]
        for at in range(0, count, 1000):
            accepted.extend(rig.accept(to[at : at + 1000]))

    log = tmp_path / "routers.log"
    try:
        with routers(rig, ROUTERS, log) as processes:

            def all_work() -> bool:
                assert all(process.poll() is None for process in processes), log.read_text()
                accept(100)
                return len({maker(row.id) for row in rig.decisions()}) == ROUTERS

            wait("a decision of each process", all_work)
            accept(JOBS)
            wait("all jobs dispatched", lambda: rig.routed() == len(accepted))
            wait("all published", lambda: len(published(rig)) >= len(accepted))
        rows = rig.decisions()
        # no job was decided, dispatched or published twice, by whomever
        assert Counter(row.job_id for row in rows) == dict.fromkeys(accepted, 1)
        assert Counter(published(rig)) == dict.fromkeys(accepted, 1)
        assert sum(rig.spool.window().queues.values()) == len(accepted)

        by_process: dict[int, list[str]] = defaultdict(list)
        for row in rows:
            by_process[maker(row.id)].append(row.pool)
        assert len(by_process) == ROUTERS
        assert min(map(len, by_process.values())) > 0.1 * JOBS, {
            node: len(pools) for node, pools in by_process.items()
        }
        for pools in by_process.values():  # each deals exactly, so they do together
            assert {pools[at : at + 1000].count("a") for at in range(len(pools) - 999)} <= {800}
        pools = [row.pool for row in rows]
        assert abs(pools.count("a") - 0.8 * len(rows)) <= 0.02 * len(rows)
        for start in range(0, len(rows) - 2000, 500):
            part = pools[start : start + 2000]
            assert abs(part.count("a") - 1600) <= 0.02 * 2000, start

        recipients = {i: f"d{n % 60}.example" for n, i in enumerate(accepted)}
        kept: dict[str, set[str]] = defaultdict(set)
        seen_by: dict[str, set[int]] = defaultdict(set)
        for row in rows:
            if row.pool == "a":
                kept[recipients[row.job_id]].add(row.source)
                seen_by[recipients[row.job_id]].add(maker(row.id))
        assert all(len(sources) == 1 for sources in kept.values()), kept
        assert any(len(nodes) == ROUTERS for nodes in seen_by.values())
        assert set().union(*kept.values()) == {"a-1", "a-2", "a-3"}
    finally:
        rig.spool.database.close()
        postgres_drop(url)
