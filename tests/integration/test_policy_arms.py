"""The outcome of each arm of a split, from jobs the real router routed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis
from sqlalchemy import insert, select, update
from typer.testing import CliRunner

from console.arms import Seen, measure
from console.cli import build
from mailweir.contracts.ids import new_id
from mailweir.contracts.job import Bucket
from mailweir.spool.schema import attempts, jobs
from tests.integration.router_rig import Rig

POLICY = """
sources:
  a-1: {buckets: [bulk]}
  a-2: {buckets: [bulk]}
  b-1: {buckets: [bulk]}
pools:
  a: {sources: [a-1, a-2]}
  b: {sources: [b-1]}
splits:
  trial:
    arms:
      - {pool: a, weight: 60}
      - {pool: b, source: b-1, weight: 40}
rules:
  - name: all
    action: {split: trial}
buckets:
  bulk: {recipient_limit: none}
"""


def attempt(job_id: int, number: int, pool: str, source: str, outcome: str) -> dict[str, object]:
    return {
        "id": new_id(), "job_id": job_id, "number": number, "at": 1.0, "source": source,
        "pool": pool, "provider": "p", "bucket": "bulk", "tenant": "acme", "outcome": outcome,
        "host": "mx", "stage": "dot", "reply": "", "seconds": 0.1,
    }  # fmt: skip


def test_each_arms_outcome_is_measured(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig.build(tmp_path, redis_url, POLICY)
    rig.accept([f"u{i}@d{i}.example" for i in range(100)])
    with rig.router(Bucket.BULK) as loop:
        rig.drain(loop, 100)
    with rig.spool.database.write() as conn:
        rows = conn.execute(
            select(jobs.c.id, jobs.c.pool, jobs.c.source, jobs.c.accepted_at).order_by(jobs.c.id)
        ).all()
        a = [row for row in rows if row.pool == "a"]
        b = [row for row in rows if row.pool == "b"]
        assert (len(a), len(b)) == (60, 40)
        for row, state, marks, took in (
            *((row, "sent", "delivered opened", 10.0) for row in a[:30]),
            *((row, "sent", "complained", 20.0) for row in a[30:45]),
            *((row, "bounced", "", 1.0) for row in a[45:]),
            *((row, "sent", "clicked unsubscribed", 5.0) for row in b),
        ):
            conn.execute(
                update(jobs)
                .where(jobs.c.id == row.id)
                .values(state=state, marks=marks, chunk_id=None, ended_at=row.accepted_at + took)
            )
            conn.execute(insert(attempts).values(attempt(row.id, 2, row.pool, row.source, state)))
        for row in b[:10]:  # deferred by arm a at first: that is a's deferral
            conn.execute(insert(attempts).values(attempt(row.id, 1, "a", "a-1", "deferred")))
    monkeypatch.setenv("MAILWEIR_DATA", str(tmp_path))
    answer = CliRunner().invoke(build(), ["policy", "arms", "-o", "json"])
    assert answer.exit_code == 0, answer.output
    one, two = json.loads(answer.stdout)
    assert (one["arm"], two["arm"]) == ("trial/a", "trial/b/b-1")
    assert (one["jobs"], one["sent"], one["bounced"], one["waiting"]) == (60, 45, 15, 0)
    assert (one["sent_rate"], one["bounce_rate"]) == (0.75, 0.25)
    assert (one["attempts"], one["deferrals"]) == (70, 10)
    assert one["complaint_rate"] == pytest.approx(15 / 45, abs=1e-6)
    assert one["open_rate"] == pytest.approx(30 / 45, abs=1e-6)
    assert (one["latency_p50"], one["latency_p95"]) == (10.0, 20.0)
    assert (two["jobs"], two["sent_rate"], two["deferral_rate"]) == (40, 1.0, 0.0)
    assert (two["click_rate"], two["unsubscribe_rate"], two["latency_p50"]) == (1.0, 1.0, 5.0)
    only = CliRunner().invoke(build(), ["policy", "arms", "--split", "other", "-o", "json"])
    assert json.loads(only.stdout) == []


def test_failover_counts_for_no_arm() -> None:
    (arm,) = measure([Seen("s/a", "sent", (), 1.0, (("z", "z-1", "deferred"), ("a", "x", "sent")))])
    assert (arm.attempts, arm.deferrals) == (1, 0)
