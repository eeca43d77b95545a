"""Feedback at its bounds: ``python -m benchmarks.reputation fold|import``.

``fold``: 200,000 attempts a minute are written and announced by one process while the reputation manager
folds them in another, pinned to one core; lag is the age of the newest folded row after each step.
``import``: a CSV of 1,000,000 suppressions through ``mailweir suppress import``, with its progress, then
asked back. Both print their figures and exit 1 below the target.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import redis
from sqlalchemy import insert

from benchmarks.machine import describe
from benchmarks.servers import redis_server
from mailweir.contracts.ids import new_ids
from mailweir.contracts.policy import Member, Policy, Pool, Source
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database, migrate
from mailweir.plumbing.events import ATTEMPT, announce
from mailweir.plumbing.settings import Settings
from mailweir.spool.schema import attempts
from reputation.manager import Manager

RATE = 200_000  # events a minute
LAG = 2.0  # seconds
BATCH = 100  # rows of a transaction, as workers write them
SOURCES, PROVIDERS = [f"ip{n}" for n in range(10)], ["gmail", "yahoo", "outlook", "icloud", "gmx"]
POLICY = Policy(
    sources={name: Source(name) for name in SOURCES},
    pools={"main": Pool("main", tuple(Member(name) for name in SOURCES))},
)


def _row(row_id: int, number: int, at: float) -> dict[str, object]:
    bad = number % 50 == 0
    return {
        "id": row_id,
        "job_id": row_id,
        "number": 1,
        "at": at,
        "source": SOURCES[number % len(SOURCES)],
        "pool": "main",
        "provider": PROVIDERS[number // 7 % len(PROVIDERS)],
        "bucket": "bulk",
        "tenant": "acme",
        "outcome": "deferred" if bad else "sent",
        "host": "mx.example.net",
        "stage": "dot",
        "code": 451 if bad else 250,
        "reply": "ok",
        "category": "rate_limited" if bad else None,
        "blame": "source" if bad else None,
        "suppress": None,
        "seconds": 0.1,
    }


def _feed(url: str, broker: str, seconds: float, told: Connection) -> None:
    """Write at the rate; tell (rows so far, when committed) after each transaction."""
    database, client = Database(url), redis.Redis.from_url(broker)
    started, written = time.time(), 0
    while written < RATE / 60 * seconds:
        time.sleep(max(0.0, started + written / (RATE / 60) - time.time()))
        ids, now = new_ids(BATCH), time.time()
        rows = [_row(row_id, written + n, now) for n, row_id in enumerate(ids)]
        with database.write() as conn:
            conn.execute(insert(attempts), rows)
        written += BATCH
        told.send((written, time.time()))
        announce(client, ATTEMPT, ids)
    told.send((written, 0.0))


def fold(seconds: float) -> bool:
    """Print rate, CPU and lag; whether they hold."""
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name)) as server:
        url = f"sqlite:///{Path(name) / 'spool.db'}"
        with closing(Database(url)) as database:
            migrate(database)
            client = redis.Redis.from_url(f"unix://{server.url}")
            quick = Settings().reputation
            manager = Manager(client, database, lambda: POLICY, quick, Clock())
            ready = time.monotonic() + 3.0
            while time.monotonic() < ready:  # takes the lease and has swept
                manager.step(0.05)
            here, there = multiprocessing.Pipe(duplex=False)
            feeder = multiprocessing.get_context("spawn").Process(
                target=_feed, args=(url, f"unix://{server.url}", seconds, there), daemon=True
            )
            feeder.start()
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
            commits: list[tuple[int, float]] = []
            folded, lags, total = 0, [], None
            began, cpu = time.monotonic(), time.process_time()
            while total is None or folded < total:
                folded += manager.step(0.05)
                now = time.time()
                while here.poll():
                    count, at = here.recv()
                    total = count if at == 0.0 else total
                    if at:
                        commits.append((count, at))
                waiting = next((at for count, at in commits if count > folded), None)
                lags.append(0.0 if waiting is None else now - waiting)
                commits = [c for c in commits if c[0] > folded]
                if time.monotonic() - began > seconds * 3 + 30:
                    break
            took, used = time.monotonic() - began, time.process_time() - cpu
            manager.stop()
    cuts = statistics.quantiles(lags, n=100)
    print(
        f"{folded:,} events in {took:.1f} s ({folded / took * 60:,.0f} a minute), {used:.1f} s of CPU "
        f"({used / took:.0%} of one core; alone it would fold {folded / used * 60:,.0f} a minute), "
        f"lag p50 {cuts[49]:.2f} s, p99 {cuts[98]:.2f} s, most {max(lags):.2f} s"
    )
    return folded == total and max(lags) < LAG


def import_list(rows: int) -> bool:
    """Print how long the import takes and how often it tells of its progress."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with redis_server(folder) as server, (folder / "list.csv").open("w") as file:
            file.write("address,scope,tenant,reason\n")
            for n in range(rows):
                file.write(f"someone{n}@example{n % 997}.net,tenant,acme,hard_bounce\n")
            file.flush()
            env = {
                **os.environ,
                "MAILWEIR_DATA": str(folder / "data"),
                "MAILWEIR_REDIS__URL": f"unix://{server.url}",
                "MAILWEIR_DATABASE__URL": f"sqlite:///{folder / 'spool.db'}",
            }
            with closing(Database(env["MAILWEIR_DATABASE__URL"])) as database:
                migrate(database)
            began = time.monotonic()
            done = _mailweir(env, "suppress", "import", file.name, "--tenant", "acme")
            took = time.monotonic() - began
            told = done.stderr.count("importing")
            answer = json.loads(done.stdout)
            began = time.monotonic()
            last = f"someone{rows - 1}@example{(rows - 1) % 997}.net"
            found = _mailweir(env, "suppress", "check", last, "--tenant", "acme")
            asked = time.monotonic() - began
    print(
        f"{answer['rows']:,} rows in {took:.0f} s ({answer['rows'] / took:,.0f} a second), "
        f"progress told {told} times; the last row asked back in {asked:.1f} s: {found.stdout.strip()[:80]}"
    )
    return (answer["rows"], answer["changed"], answer["bad"]) == (rows, rows, 0)


def _mailweir(env: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "console", *command, "-o", "json"]
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=False)
    if not done.stdout:
        sys.exit(done.stderr)
    return done


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("fold", "import"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    print(describe())
    held = fold(options.seconds) if options.what == "fold" else import_list(options.rows)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
