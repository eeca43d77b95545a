"""Queues of regions: where processes have a region every region's queue is served, else there are none."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from console.cli import build
from mailweir.contracts.ids import format_id
from mailweir.contracts.job import Bucket
from tests.integration.router_rig import Rig

POLICY = """
regions: [eu, us]
sources:
  eu-1: {buckets: [bulk], region: eu}
  us-1: {buckets: [bulk], region: us}
pools:
  a: {sources: [eu-1]}
  b: {sources: [us-1]}
rules:
  - name: all
    action: {pool: {a: 50, b: 50}}
buckets:
  bulk: {recipient_limit: none}
"""


@pytest.mark.parametrize(
    ("region", "queues"),
    [(None, {"bulk": 40}), ("eu", {"bulk@eu": 20, "bulk@us": 20})],
)
def test_every_job_finds_a_queue(
    tmp_path: Path,
    redis_url: str,
    redis_clean: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    region: str | None,
    queues: dict[str, int],
) -> None:
    rig = Rig.build(tmp_path, redis_url, POLICY, region=region)
    ids = rig.accept([f"u{i}@d{i}.example" for i in range(40)])
    with rig.router(Bucket.BULK) as loop:
        rig.drain(loop, 40)
    assert Counter(row.queue for row in rig.decisions()) == queues
    monkeypatch.setenv("MAILWEIR_DATA", str(tmp_path))
    answer = CliRunner().invoke(
        build(), ["route", "explain", "--id", format_id(ids[0]), "-o", "json"]
    )
    assert json.loads(answer.stdout)["expands_to_itself"]
