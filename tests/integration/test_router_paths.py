"""When a router looks at the paths: for jobs it can route, not at rest."""

from __future__ import annotations

from pathlib import Path

import redis

from tests.integration.router_rig import Rig

POLICY = """
sources:
  a-1: {buckets: [marketing, bulk]}
pools:
  a: {sources: [a-1]}
rules:
  - name: rest
    action: {pool: a}
"""


def looks(client: redis.Redis) -> int:
    """How often somebody asked for all paths."""
    stats = client.info("commandstats")
    return int(stats.get("cmdstat_smembers", {"calls": 0})["calls"])


def test_at_rest_no_path_is_read(tmp_path: Path, redis_url: str, redis_clean: redis.Redis) -> None:
    rig = Rig.build(tmp_path, redis_url, POLICY)
    rig.client.config_resetstat()
    with rig.router() as loop:
        for _ in range(5):
            assert loop.turn() == 0
        assert looks(rig.client) == 0
        rig.accept(["u@d.example"], "bulk")
        rig.drain(loop, 1)
        assert looks(rig.client) >= 1
