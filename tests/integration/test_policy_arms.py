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


def arms_of(rig: Rig) -> dict[int, str]:
    """The arm each job was last routed by."""
    with rig.spool.database.read() as conn:
        rows = conn.execute(select(jobs.c.id, jobs.c.orders).order_by(jobs.c.id)).all()
    return {row.id: json.loads(row.orders)["arm"] for row in rows}


def test_each_arms_outcome_is_measured(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig.build(tmp_path, redis_url, POLICY, router={"window_min": 1000})
    rig.accept([f"u{i}@d{i}.example" for i in range(100)])
    with rig.router(Bucket.BULK) as loop:
        rig.drain(loop, 100)
        first = dict(arms_of(rig))
        late = [job for job, arm in first.items() if arm == "trial/b/b-1"][:10]
        with rig.spool.database.write() as conn:
            for job in late:  # tried once: deferred, and due again
                conn.execute(insert(attempts).values(attempt(job, 1, "b", "b-1", "deferred")))
                conn.execute(
                    update(jobs)
                    .where(jobs.c.id == job)
                    .values(state="deferred", chunk_id=None, attempts=1, due_at=rig.clock.now())
                )
        rig.drain(loop, 100)
    assert arms_of(rig) == first  # each retry is made by the arm of the first attempt
    with rig.spool.database.write() as conn:
        rows = conn.execute(
            select(jobs.c.id, jobs.c.pool, jobs.c.source, jobs.c.accepted_at).order_by(jobs.c.id)
        ).all()
        a = [row for row in rows if row.pool == "a"]
        b = [row for row in rows if row.pool == "b"]
        assert abs(len(a) - 60) <= 3
        assert len(a) + len(b) == 100
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
    monkeypatch.setenv("MAILWEIR_DATA", str(tmp_path))
    answer = CliRunner().invoke(build(), ["policy", "arms", "-o", "json"])
    assert answer.exit_code == 0, answer.output
    one, two = json.loads(answer.stdout)
    assert (one["arm"], two["arm"]) == ("trial/a", "trial/b/b-1")
    of_a = len(a)
    assert (one["jobs"], one["sent"], one["bounced"]) == (of_a, 45, of_a - 45)
    assert one["waiting"] == two["waiting"] == 0
    assert one["sent_rate"] == pytest.approx(45 / of_a, abs=1e-6)
    assert one["bounce_rate"] == pytest.approx(1 - 45 / of_a, abs=1e-6)
    assert (one["attempts"], one["deferrals"]) == (of_a, 0)
    assert (two["attempts"], two["deferrals"]) == (len(b) + 10, 10)
    assert one["complaint_rate"] == pytest.approx(15 / 45, abs=1e-6)
    assert one["open_rate"] == pytest.approx(30 / 45, abs=1e-6)
    assert (one["latency_p50"], one["latency_p95"]) == (10.0, 20.0)
    assert (two["jobs"], two["sent_rate"]) == (len(b), 1.0)
    assert two["deferral_rate"] == pytest.approx(10 / (len(b) + 10), abs=1e-6)
    assert (two["click_rate"], two["unsubscribe_rate"], two["latency_p50"]) == (1.0, 1.0, 5.0)
    only = CliRunner().invoke(build(), ["policy", "arms", "--split", "other", "-o", "json"])
    assert json.loads(only.stdout) == []


def test_failover_counts_for_no_arm() -> None:
    (arm,) = measure([Seen("s/a", "sent", (), 1.0, (("z", "z-1", "deferred"), ("a", "x", "sent")))])
    assert (arm.attempts, arm.deferrals) == (1, 0)
