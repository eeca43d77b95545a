"""The spool alone, one process: accept, claim and settle, take and read, outcomes.

    python -m benchmarks.spool [--jobs 10000] [--url postgresql://...] [-o json]

Prints jobs per second and CPU seconds per 1,000 jobs of this process (a PostgreSQL server's CPU is
not in it). Bodies are 10 KiB, one job per message, ten lanes, an idempotency key each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from mailweir.contracts.events import Attempt
from mailweir.contracts.ids import new_id, new_ids
from mailweir.contracts.job import Bucket, Content, ContentKind, JobMeta, NewJob, NewMessage
from mailweir.contracts.lifecycle import State
from mailweir.contracts.route import Chunk, Orders
from mailweir.plumbing.database import Database, migrate
from mailweir.spool.store import (
    DecisionRow,
    Dispatch,
    Outcome,
    Pick,
    Spool,
    Taking,
    Work,
)

BODY = (b"From: a@s.test\r\nSubject: x\r\n\r\n" + b"The quick brown fox jumps.\r\n" * 400)[:10240]


T = TypeVar("T")


class Step:
    """Collects the time of one step."""

    def __init__(self) -> None:
        self.real = self.cpu = 0.0
        self.jobs = 0

    def __call__(self, jobs: int, work: Callable[[], T]) -> T:
        real, cpu = time.perf_counter(), time.process_time()
        value = work()
        self.real += time.perf_counter() - real
        self.cpu += time.process_time() - cpu
        self.jobs += jobs
        return value


def _messages(count: int, now: float) -> list[NewMessage]:
    out = []
    for i in range(count):
        body = BODY + f"{i}".encode()
        content = Content(new_id(), ContentKind.MIME, body, hashlib.sha256(body).digest())
        meta = JobMeta(campaign="spring", prepend=f"Message-ID: <{i}@s.test>\r\nDate: x\r\n")
        job = NewJob(new_id(), f"user{i}@d{i % 200}.example.test", "a@s.test", f"lane{i % 10}")
        out.append(
            NewMessage(
                new_id(), "acme", Bucket.BULK, 5, content, meta, (job,), now, None,
                f"key-{new_id()}", content.sha256,
            )
        )  # fmt: skip
    return out


def run(spool: Spool, jobs: int, chunk: int) -> dict[str, Step]:
    """All steps over ``jobs`` jobs."""
    steps = {n: Step() for n in ("accept 100", "flows", "claim 300", "settle", "take 50", "read 50",
                                 "contents 50", "outcomes 50")}  # fmt: skip
    messages = _messages(jobs, time.time())
    for start in range(0, jobs, 100):
        some = messages[start : start + 100]
        steps["accept 100"](len(some), partial(spool.accept, some))
    chunks: list[Chunk] = []
    orders = Orders(rule="default", provider="example")
    while True:
        flows = steps["flows"](300, partial(spool.flows, Bucket.BULK, time.time()))
        if not flows:
            break
        picks = [Pick(flow, 300 // len(flows) + 1) for flow in flows]
        start_real, start_cpu = time.perf_counter(), time.process_time()
        with spool.claim(picks, time.time()) as batch:
            steps["claim 300"].real += time.perf_counter() - start_real
            steps["claim 300"].cpu += time.process_time() - start_cpu
            steps["claim 300"].jobs += len(batch.jobs)
            ids = [job.id for job in batch.jobs]
            dispatches = []
            for first in range(0, len(ids), chunk):
                group = tuple(ids[first : first + chunk])
                parcel = Chunk(new_id(), Bucket.BULK, "bulk", "ip1", group)
                dispatches.append(
                    Dispatch(parcel, dict.fromkeys(group, "main"), dict.fromkeys(group, orders))
                )
            decisions = [
                DecisionRow(d, i, time.time(), "1.0", 1, "routed", "main", "ip1", "bulk",
                            "default", None, '{"rejected":[{"source":"ip2","why":"cap"}]}')
                for i, d in zip(ids, new_ids(len(ids)), strict=True)
            ]  # fmt: skip
            done = steps["settle"](len(ids), partial(batch.settle, dispatches, [], decisions))
            chunks += done
    for parcel in chunks:
        size = len(parcel.jobs)
        taking = Taking([parcel.id], "w", 30.0, "e")
        steps["take 50"](size, partial(spool.turn, taking=taking))
        works = steps["read 50"](size, partial(spool.taken, parcel))
        assert len(works) == size
        steps["contents 50"](size, partial(spool.contents, [w.content_id for w in works]))
        outcomes = [_outcome(w, parcel) for w in works]
        turn = steps["outcomes 50"](size, partial(spool.turn, outcomes, [parcel.id]))
        assert not turn.lost
    return steps


def _outcome(work: Work, parcel: Chunk) -> Outcome:
    attempt = Attempt(
        new_id(), work.job.id, 1, time.time(), "ip1", "main", "example", "bulk", "acme", "sent",
        "mx1.example.test", "dot", 250, "2.0.0", "250 2.0.0 Ok: queued as 4X9", seconds=0.012,
    )  # fmt: skip
    return Outcome(work.job.id, parcel.id, State.SENT, attempt=attempt)


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--chunk", type=int, default=50)
    parser.add_argument("--url", help="SQLAlchemy URL; default: a new SQLite file")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = Database(args.url or f"sqlite:///{Path(folder) / 'spool.db'}")
        migrate(database)
        steps = run(Spool(database), args.jobs, args.chunk)
        database.close()
    figures = {
        name: {
            "jobs_per_s": round(s.jobs / s.real),
            "cpu_s_per_1k": round(s.cpu / s.jobs * 1000, 4),
        }
        for name, s in steps.items()
    }
    if args.output == "json":
        print(json.dumps({"jobs": args.jobs, "dialect": database.dialect_name, "steps": figures}))
        return
    for name, f in figures.items():
        print(f"{name:14} {f['jobs_per_s']:>9,} jobs/s  {f['cpu_s_per_1k']:.4f} CPU s/1k")


if __name__ == "__main__":
    main()
