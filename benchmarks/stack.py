"""A Mailweir for one row: real processes, each with a sign that it is ready."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import text

from benchmarks.servers import postgres
from mailweir.plumbing import keys, policies
from mailweir.plumbing.beat import VARIABLE
from mailweir.plumbing.database import Database, migrate, open_database
from mailweir.plumbing.install import master_key
from mailweir.plumbing.redis import connect
from mailweir.plumbing.settings import load
from router.policy.loader import load_checked
from simulator.ports import free_port

READY_WITHIN = 180.0

POLICY = """
sources:
  tx-1: {{buckets: [transactional]}}
  bulk-1: {{buckets: [marketing, bulk]}}
  bulk-2: {{buckets: [marketing, bulk]}}
pools:
  transactional: {{sources: [tx-1]}}
  bulk: {{sources: [bulk-1, bulk-2]}}
rules:
  - name: transactional
    match: {{bucket: transactional}}
    action: {{pool: transactional}}
  - name: rest
    action: {{pool: bulk}}
providers:
  other: {{rate: 6000000/min, cold_rate: 6000000/min, connections: 10, per_connection: 1000, tls: {tls}}}
buckets:
  bulk: {{rate: 6000000/min}}
{domains}
"""
SIGNED = 'domains: {{s.example.test: {{dkim: [{{selector: s1, secret: "file:{key}"}}]}}}}'


@dataclass
class Stack:
    """Running processes by name, and the way to look at what they keep."""

    folder: Path
    env: Mapping[str, str]
    database: Database
    client: redis.Redis
    broker: redis.Redis
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    metrics: int = 0  # port of the reputation process' metrics
    extra: dict[str, int] = field(default_factory=dict)  # servers that are no child of ours
    begin: Callable[[], None] = lambda: None  # starts what ``later`` left

    @property
    def roots(self) -> dict[str, int]:
        """Process ids of the trees that are measured."""
        return {**{name: p.pid for name, p in self.processes.items()}, **self.extra}

    def start(self, name: str, *command: str, beat: bool = False, **popen: Any) -> None:
        """Start one of our processes; ``beat``: it says through its beat file that it works."""
        env = dict(self.env)
        if beat:
            env[VARIABLE] = str(self.folder / f"{name}.beat")
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=env,
                stderr=log,
                **{"stdout": log, "stdin": subprocess.DEVNULL, **popen},
            )

    def wait(self, what: str, until: Callable[[], bool], longest: float = READY_WITHIN) -> None:
        """Wait for a sign; says what the processes logged when it does not come."""
        end = time.monotonic() + longest
        while not until():
            died = [n for n, p in self.processes.items() if p.poll() not in (None, 0)]
            if died or time.monotonic() > end:
                logs = "".join(
                    f"\n--- {log.name}: {log.read_text(errors='replace')[-1500:]}"
                    for log in sorted(self.folder.glob("*.log"))
                )
                raise RuntimeError(f"{what}: {died or 'not'} within {longest:.0f} s{logs}")
            time.sleep(0.05)

    def count(self, query: str) -> int:
        """A count of the spool."""
        with self.database.read() as conn:
            return int(conn.execute(text(query)).scalar_one())

    def leftovers(self) -> list[str]:
        """What must not be there after a row."""
        found = []
        for queue in keys.bucket_queues():
            if waiting := int(self.broker.llen(keys.CELERY_PREFIX + queue)):
                found.append(f"{waiting} messages in queue {queue}")
        for key in self.broker.keys(keys.CELERY_PREFIX + "unacked*"):
            found.append(f"broker key {key!r}")
        for key in self.client.keys(keys.in_data(0).replace("0", "*")):
            found.append(f"mark {key!r}")
        if waiting := self.count("SELECT count(*) FROM chunks WHERE done_real IS NULL"):
            found.append(f"{waiting} chunks not done")
        return found


@contextmanager
def stack(
    folder: Path,
    sink_port: int,
    *,
    on: str,
    workers: int,
    transactional: bool = False,
    signed: bool = False,
    tls: bool = False,
    mx_map: Mapping[str, str] | None = None,
    later: bool = False,
) -> Iterator[Stack]:
    """Everything but the accept process. ``on``: ``embedded``; ``postgresql`` with a folder for bodies beside
    it, as one machine has it; ``postgresql-tables`` without, as several machines have it. ``later``: nothing is
    started before :attr:`Stack.begin` is called, so that a backlog can be accepted."""
    with ExitStack() as exits:
        env = {k: v for k, v in os.environ.items() if not k.startswith("MAILWEIR_")}
        env |= {
            "MAILWEIR_DATA": str(folder / "data"),
            "PYTHONFAULTHANDLER": "1",
            "MAILWEIR_LOG_LEVEL": "warning",
            "MAILWEIR_REPUTATION__METRICS_PORT": str(metrics := free_port()),
            "MAILWEIR_SMTP__HOSTNAME": "mx.s.example.test",
            "MAILWEIR_SMTP__ALLOW_PRIVATE": "true",
            "MAILWEIR_DNS__MX_MAP": json.dumps(
                {d: [h] for d, h in {"*": f"127.0.0.1:{sink_port}", **(mx_map or {})}.items()}
            ),
        }
        extra = {}
        if on == "postgresql":
            env["MAILWEIR_DATABASE__BODIES"] = str(folder / "bodies")
        if on != "embedded":
            server = exits.enter_context(postgres())
            env["MAILWEIR_DATABASE__URL"] = server.url
            extra["postgresql"] = server.pid
        saved = dict(os.environ)
        exits.callback(os.environ.update, saved)
        exits.callback(os.environ.clear)  # before the update: callbacks run last one first
        os.environ.update(env)  # what `load` reads
        settings = load()
        master_key(settings)
        database = open_database(settings)
        exits.callback(database.close)
        migrate(database)
        key = folder / "dkim.pem"
        if signed:
            subprocess.run(
                ["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True
            )
        policy = POLICY.format(
            tls="opportunistic" if tls else "none", domains=SIGNED.format(key=key) if signed else ""
        )
        loaded = load_checked(policy)
        policies.apply(
            database, loaded.policy, policy, author="bench", reason=None, now=time.time()
        )
        client = connect(settings)
        broker = redis.Redis(
            connection_pool=redis.ConnectionPool(
                **{**client.connection_pool.connection_kwargs, "db": 1},
                connection_class=client.connection_pool.connection_class,
            )
        )
        made = Stack(folder, env, database, client, broker, extra=extra, metrics=metrics)
        exits.callback(_stop, made)
        if later:
            made.begin = partial(_start, made, workers, transactional)
        else:
            _start(made, workers, transactional)
        yield made


def _start(made: Stack, workers: int, transactional: bool) -> None:
    made.start("redis", "console", "run", "state")

    def answers() -> bool:
        try:
            return bool(made.client.ping())
        except redis.RedisError:
            return False

    made.wait("the state server", answers)
    beating = {
        "router-transactional": ("router", "--buckets", "transactional"),
        "router": ("router", "--buckets", "marketing,bulk"),
        "reputation": ("reputation",),
    }
    for name, command in beating.items():
        made.start(name, "console", "run", *command, beat=True)
    queues = "marketing,marketing.throttled,bulk,bulk.throttled"
    names = {f"worker-{n + 1}": queues for n in range(workers)}
    if transactional:
        names["worker-transactional"] = "transactional"
    for name, some in names.items():
        made.start(name, "console", "run", "worker", "--queues", some)
    made.wait(
        "routers and reputation", lambda: all((made.folder / f"{n}.beat").exists() for n in beating)
    )
    made.wait("workers", lambda: int(made.client.hlen(keys.WORKERS)) == len(names))


def _stop(made: Stack) -> None:
    for last in (False, True):
        some = [p for n, p in made.processes.items() if (n == "redis") is last]
        for process in some:
            if process.stdin is not None:
                process.stdin.close()
            process.terminate()
        for process in some:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
