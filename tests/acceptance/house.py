"""A whole Mailweir for one scenario: simulated providers and ``mailweir up``, through the real command.

Waits are for signals (a state in the spool, a line of the witness), never for time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis

from mailweir.contracts.ids import parse_id
from mailweir.plumbing.database import Database
from mailweir.plumbing.redis import socket_path
from simulator.control import send_command
from simulator.ports import free_port
from simulator.witness import read
from tests.services.stopped import stop

LONGEST = 90.0  # real seconds any wait may take; a scenario that needs more says so
STATE_SERVER = "state server"
MAILWEIR = (sys.executable, "-m", "console")

POLICY = """
sources:
  tx-1: {buckets: [transactional]}
  news-1: {buckets: [marketing, bulk]}
pools:
  transactional: {sources: [tx-1]}
  news: {sources: [news-1]}
rules:
  - match: {bucket: transactional}
    action: {pool: transactional}
  - name: rest
    action: {pool: news}
providers:
  gmail: {rate: 60000/min, connections: 10, per_connection: 1000, tls: opportunistic}
  outlook: {rate: 60000/min, connections: 10, per_connection: 1000, tls: opportunistic}
  yahoo: {rate: 60000/min, connections: 10, per_connection: 1000, tls: opportunistic}
buckets:
  transactional: {recipient_limit: none}
  marketing: {recipient_limit: none}
  bulk: {recipient_limit: none}
"""


@dataclass
class House:
    """A running stack and its evidence."""

    data: Path
    port: int
    env: Mapping[str, str]
    smtp_port: int = 0
    flower_port: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def simulator(self) -> Path:
        """Folder of the simulated providers."""
        return self.data / "simulator"

    @property
    def api_key(self) -> str:
        """The key made at first start."""
        return (self.data / "api.key").read_text().strip()

    @property
    def broker(self) -> str:
        """URL of Celery's broker."""
        url = self.env.get("MAILWEIR_BROKER__URL")
        return url or f"redis+socket://{socket_path(self.data)}?virtual_host=1"

    def run(self, *command: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a ``mailweir`` command."""
        return subprocess.run(
            [*MAILWEIR, *command],
            env=dict(self.env),
            input=stdin,
            capture_output=True,
            check=False,
            timeout=LONGEST,
        )

    def post(self, body: dict[str, Any], path: str = "/v1/messages") -> httpx.Response:
        """Submit at the HTTP door."""
        return httpx.post(
            f"http://127.0.0.1:{self.port}{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.api_key}"},
            timeout=LONGEST,
        )

    def send(self, recipients: list[str], bucket: str = "transactional", **more: Any) -> list[str]:
        """Submit one message; the ids of its jobs."""
        body = {
            "from": "app@acme.example",
            "to": recipients,
            "subject": "hello",
            "text": "hello there\n",
            "bucket": bucket,
            "unsubscribe": bucket != "transactional",
            **more,
        }
        answer = self.post(body)
        assert answer.status_code == 202, answer.text
        return [job["id"] for job in answer.json()["jobs"]]

    def mail_list(self, addresses: list[str]) -> None:
        """Submit a short bulk mail to each, by CSV and template; nothing of it goes out before all of it is in:
        a slow machine would submit no faster than it sends."""
        self.wait_beat("worker-bulk")
        (self.data / "list.csv").write_text("\n".join(["email", *addresses]) + "\n")
        template = self.data / "template"
        template.mkdir()
        (template / "subject.txt").write_text("News\n")
        (template / "body.txt").write_text("Hello\n")
        with self.standing_still("run worker --queues marketing"):
            done = self.run(
                *("send", "-f", "news@acme.example", "--bucket", "bulk", "-o", "json"),
                *("--csv", str(self.data / "list.csv"), "--template", str(template)),
            )
        assert done.returncode == 0, done.stderr.decode()

    def behave(self, provider: str, **behaviour: Any) -> None:
        """Change a simulated provider."""
        order = {"do": "set", "provider": provider, "behaviour": behaviour}
        send_command(self.simulator, order, timeout=LONGEST)

    def witness(self) -> list[dict[str, Any]]:
        """What the providers recorded."""
        return list(read(self.simulator / "witness.jsonl"))

    def states(self) -> Counter[str]:
        """Jobs by state."""
        database = self.database()
        try:
            with database.read() as conn:
                rows = conn.exec_driver_sql("SELECT state, count(*) FROM jobs GROUP BY state").all()
        finally:
            database.close()
        return Counter({str(state): int(count) for state, count in rows})

    def state_of(self, job: str) -> str:
        """State of one job."""
        database = self.database()
        try:
            with database.read() as conn:
                return str(
                    conn.exec_driver_sql(
                        "SELECT state FROM jobs WHERE id = ?", (parse_id(job),)
                    ).scalar_one()
                )
        finally:
            database.close()

    def database(self) -> Database:
        """The spool's database; close it."""
        return Database(f"sqlite:///{self.data / 'spool.db'}")

    def redis(self) -> redis.Redis:
        """The state server."""
        return redis.Redis(unix_socket_path=str(socket_path(self.data)))

    def pids(self, name: str) -> list[int]:
        """Process ids of a supervised process, by what its command line holds."""
        if name == STATE_SERVER:  # it writes its title over its environment
            written = (self.data / "redis" / "server.pid").read_text()
            return [int(written)] if written else []  # a starting server has opened its file
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")
                environ = (folder / "environ").read_bytes()
            except (FileNotFoundError, PermissionError, ProcessLookupError):
                continue
            ours = f"MAILWEIR_DATA={self.data}\0".encode() in environ + b"\0"
            if ours and name in " ".join(part.decode(errors="replace") for part in command):
                found.append(int(folder.name))
        return sorted(found)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Kill one supervised process; its pid."""
        pid = self.pids(name)[0]
        if number == signal.SIGSTOP:
            stop(pid)
        else:
            os.kill(pid, number)
        return pid

    @contextmanager
    def standing_still(self, name: str) -> Iterator[int]:
        """A supervised process is stopped (SIGSTOP) while the block runs; its pid. After a minute the
        supervisor starts another: then nobody stands still any more."""
        pid = self.kill(name, signal.SIGSTOP)
        try:
            yield pid
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def wait_beat(self, process: str) -> None:
        """Wait for the first beat of a supervised process: before it, it is Python that starts, hears of no
        signal and consumes nothing."""
        self.wait(f"the first beat of {process}", (self.data / "run" / f"{process}.beat").exists)

    def wait_listening(self, port: int) -> None:
        """Wait until somebody listens on a port: only the HTTP door is known to when the house is up."""

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        self.wait(f"a server on port {port}", listens)

    def wait(self, what: str, until: Callable[[], bool], longest: float = LONGEST) -> None:
        """Wait for a signal; fail saying what did not come."""
        deadline = time.monotonic() + longest
        while not until():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come within {longest:.0f} s\n{self.report()}")
            time.sleep(0.05)  # between two looks at the signal, not in its place

    def wait_ended(self, count: int, longest: float = LONGEST) -> Counter[str]:
        """Wait until ``count`` jobs have ended; the states."""

        def ended() -> bool:
            states = self.states()
            done = ("sent", "bounced", "expired", "refused", "cancelled", "uncertain")
            return sum(states[state] for state in done) >= count

        self.wait(f"the end of {count} jobs", ended, longest)
        return self.states()

    def wait_mails(self, count: int, longest: float = LONGEST) -> None:
        """Wait until the providers have got ``count`` mails."""
        self.wait(f"{count} mails", lambda: len(self.witness()) >= count, longest)

    def wait_settled(self, jobs: list[str]) -> None:
        """Wait until each of these jobs has ended."""
        done = ("sent", "bounced", "expired", "refused", "cancelled", "uncertain")
        self.wait("the end of the jobs", lambda: all(self.state_of(job) in done for job in jobs))

    def report(self) -> str:
        """What a person needs who sees the scenario fail."""
        parts = [f"states: {dict(self.states())}"]
        for log in sorted((self.data / "logs").glob("*.log")):
            tail = log.read_text(errors="replace").splitlines()[-4:]
            parts += [f"--- {log.name}", *tail]
        return "\n".join(parts)


@contextmanager
def house(
    folder: Path,
    *,
    policy: str = POLICY,
    env: Mapping[str, str] | None = None,
    keep: bool = False,
) -> Iterator[House]:
    """Start providers and stack; stop them at the end, whatever happened.

    ``keep``: the providers keep every message's bytes."""
    data = folder / "house"
    data.mkdir()
    port, flower, smtp = free_port(), free_port(), free_port()
    rate = (env or {}).get("MAILWEIR_CLOCK__RATE", "1")
    # a faster clock runs from now on: from 1970 it would already be in a far century
    since = "0" if float(rate) == 1 else repr(time.time())
    origin = (env or {}).get("MAILWEIR_CLOCK__ORIGIN", since)
    base = {
        **{k: v for k, v in os.environ.items() if not k.startswith("MAILWEIR_")},
        "MAILWEIR_DATA": str(data),
        "MAILWEIR_SMTP__ALLOW_PRIVATE": "true",
        "MAILWEIR_WORKER__NICE": "0",  # other houses of the suite run beside this one
        "MAILWEIR_ACCEPT__COMMIT_TIMEOUT": str(LONGEST),  # and their commits go to the same disk
        "MAILWEIR_POLICY": str(data / "policy.yaml"),
        **(env or {}),
        "MAILWEIR_CLOCK__ORIGIN": origin,
    }
    (data / "policy.yaml").write_text(policy)
    simulator = subprocess.Popen(
        [*MAILWEIR, "simulator", "run", "--folder", str(data / "simulator")]
        + ["--rate", rate, "--origin", origin, *(["--keep"] if keep else [])],
        env=base,
    )
    made = House(data, port, base, smtp, flower, [simulator])
    try:
        mx_map = data / "simulator" / "mx_map.json"
        deadline = time.monotonic() + LONGEST
        while not mx_map.exists():
            assert simulator.poll() is None, "the simulator ended"
            assert time.monotonic() < deadline, "the simulator did not start"
            time.sleep(0.05)
        made.behave("generic", greylist=0)
        for name in ("gmail", "outlook", "yahoo", "generic"):
            made.behave(name, unknown=0, full=0)
        # a scenario's own servers come before the simulated providers
        own = json.loads((env or {}).get("MAILWEIR_DNS__MX_MAP", "{}"))
        base["MAILWEIR_DNS__MX_MAP"] = json.dumps({**json.loads(mx_map.read_text()), **own})
        with (data / "up.log").open("wb") as log:
            up = subprocess.Popen(
                [*MAILWEIR, "up", "--data", str(data), "--port", str(port)]
                + ["--flower-port", str(flower), "--smtp-port", str(smtp)],
                env=base,
                stdout=log,
                stderr=log,
            )
        made.processes.append(up)

        def started() -> bool:
            assert up.poll() is None, (data / "up.log").read_text()
            return (data / "url").exists()

        made.wait("the start of the stack", started)
        yield made
    finally:
        for process in reversed(made.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
