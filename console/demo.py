"""The demo: the whole way with real files, real processes and a provider that fails in the middle.

It starts simulated mailbox providers and the embedded stack in a folder of its own, sends the examples
through the command line as a user would, breaks one provider, waits for the end, and puts what the spool
says beside what the providers recorded. Policy time runs faster, so that retries fit in minutes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from sqlalchemy import select

from console.demo_report import Summary, summarise
from console.process import Spec
from console.running import Stack
from console.stack import mailweir
from mailweir.contracts.ids import format_id
from mailweir.plumbing.database import Database, open_database
from mailweir.spool.schema import jobs
from simulator.control import send_command
from simulator.ports import free_port
from simulator.profiles import DOMAINS
from simulator.witness import read

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
FAILING = "outlook"
RATE = 10.0  # policy seconds per real second
FAULT_AFTER = 0.3  # share of jobs sent when the provider fails
FAULT_SECONDS = 15.0  # real seconds it stays broken
LONGEST = 150.0  # real seconds from the first job until the demo stops waiting
LOOK_EVERY = 0.5
SETTLED = ("sent", "bounced", "expired", "refused", "cancelled", "uncertain", "dead_letter")


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclass
class Progress:
    """What a progress display shows."""

    total: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass
class Demo:
    """One run. ``show`` is called about twice a second, ``say`` for every step."""

    data: Path
    count: int
    say: Callable[[str], None]
    show: Callable[[Progress], None]
    port: int = 0
    flower_port: int = 0
    answered: int = 0
    stack: Stack = field(init=False)

    def run(self, cancelled: Callable[[], bool]) -> Summary:
        """The whole demo, up to its summary; the stack is left running."""
        self._start(cancelled)
        began = time.time()
        database = open_database(self.stack.settings)
        try:
            feeders = self._feed()
            fault_at = self._watch(database, feeders, began, cancelled)
            self._suppressed_wave()
            self._settle(database, began, cancelled)
            return self._summary(database, began, fault_at)
        finally:
            database.close()

    # --- start

    def _start(self, cancelled: Callable[[], bool]) -> None:
        now = time.time()
        folder = self.data / "simulator"
        self.say("starting simulated providers: gmail, outlook, yahoo, a generic one, a smarthost")
        simulator = Spec(
            "simulator",
            mailweir(
                *("simulator", "run", "--folder", str(folder)),
                *("--rate", repr(RATE), "--origin", repr(now)),
            ),
            beats=False,
            grace=5,
        )
        self.stack = Stack(
            self.data,
            port=self.port or free_port(),
            flower_port=self.flower_port or free_port(),
            smtp_port=free_port(),
            say=self.say,
            first=[simulator],
            before=lambda: self._configure(folder, now, cancelled),
        )
        self.say(f"starting the embedded stack in {self.data}")
        self.stack.start(cancelled)

    def _configure(self, folder: Path, now: float, cancelled: Callable[[], bool]) -> None:
        """When the providers listen: settings in the data directory, where commands beside the demo find
        them too, with the providers' addresses as static MX map; the smarthost's port in the policy."""
        path = folder / "mx_map.json"
        deadline = time.monotonic() + 30
        while not path.exists() and not cancelled():
            if time.monotonic() > deadline:
                raise DemoError(f"the simulator did not start; see {self.data / 'logs'}")
            time.sleep(0.05)
        mx_map = json.loads(path.read_text())
        port = mx_map["relay.example"][0].rpartition(":")[2]
        policy = self.data / "policy.yaml"
        policy.write_text((EXAMPLES / "policy-demo.yaml").read_text().replace("RELAY_PORT", port))
        (self.data / "mailweir.toml").write_text(settings_toml(policy, now, mx_map))

    # --- mail

    def _feed(self) -> list[subprocess.Popen[bytes]]:
        """Start the submissions, each a command a user could type."""
        rows = (EXAMPLES / "recipients.csv").read_text().splitlines(keepends=True)
        header, rows = rows[0], rows[1:]
        tx = self.count // 10
        marketing = (self.count - tx) * 2 // 3
        bulk = self.count - tx - marketing
        if marketing > len(rows):
            raise DemoError(
                f"--jobs is at most {len(rows) * 3 // 2}: examples/recipients.csv ends there"
            )
        parts = {"marketing": rows[:marketing], "bulk": rows[-bulk:]}
        self.say(
            f"sending {tx} transactional (.eml), {marketing} marketing and {bulk} bulk "
            "(CSV and template)"
        )
        commands: list[list[str]] = []
        for bucket, part in parts.items():
            path = self.data / f"{bucket}.csv"
            path.write_text(header + "".join(part))
            merge = ["--csv", str(path), "--template", str(EXAMPLES / "newsletter")]
            labels = ["--bucket", bucket, "--campaign", f"autumn-{bucket}"]
            sender = ["-f", "Acme Shop <news@acme.example>"]
            commands.append(["send", *sender, *merge, *labels, "-o", "json"])
        emls = sorted((EXAMPLES / "messages").glob("*.eml"))
        addresses = [row.partition(",")[0].replace("user", "account") for row in rows[:tx]]
        for index, eml in enumerate(emls):
            to = [word for address in addresses[index :: len(emls)] for word in ("-t", address)]
            commands.append(["send", "--eml", str(eml), *to, "-o", "json"])
        return [self._command(command) for command in commands]

    def _command(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            mailweir(*command, "--data", str(self.data)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def _collect(self, feeders: Sequence[subprocess.Popen[bytes]]) -> None:
        """Add up what the doors accepted."""
        for feeder in feeders:
            out, err = feeder.communicate()
            if feeder.returncode:
                raise DemoError(
                    f"a submission failed: {err.decode(errors='replace').strip()[-500:]}"
                )
            self.answered += _accepted(out)

    def _suppressed_wave(self) -> None:
        """Mail those whose mailbox turned out not to exist once more: refused, not attempted."""
        with open_db(self.stack) as database, database.read() as conn:
            bounced = list(
                conn.execute(
                    select(jobs.c.recipient).where(jobs.c.state == "bounced").limit(20)
                ).scalars()
            )
        if bounced:
            to = [word for address in bounced for word in ("-t", address)]
            eml = str(EXAMPLES / "messages" / "security-alert.eml")
            self.say(f"mailing {len(bounced)} bounced addresses again: they are suppressed now")
            self._collect([self._command(("send", "--eml", eml, *to, "-o", "json"))])

    # --- the middle

    def _watch(
        self,
        database: Database,
        feeders: list[subprocess.Popen[bytes]],
        began: float,
        cancelled: Callable[[], bool],
    ) -> float | None:
        """Break the provider when enough is sent, mend it later; when it broke."""
        folder = self.data / "simulator"
        fault_at: float | None = None
        mended = False
        while not cancelled() and time.time() - began < LONGEST:
            counts = self._counts(database)
            sent = counts.get("sent", 0)
            if fault_at is None and sent >= self.count * FAULT_AFTER:
                send_command(
                    folder,
                    {"do": "set", "provider": FAILING, "behaviour": {"outage": 1.0}},
                )
                send_command(folder, {"do": "drop", "provider": FAILING})
                fault_at = time.time()
                self.say(f"{FAILING} fails: every host answers 421 and open sessions are cut")
            if fault_at is not None and not mended and time.time() - fault_at > FAULT_SECONDS:
                send_command(folder, {"do": "reset", "provider": FAILING})
                mended = True
                self.say(f"{FAILING} works again")
            self._tell(counts, "" if fault_at is None or mended else f"{FAILING} is down")
            fed = all(feeder.poll() is not None for feeder in feeders)
            if fed and mended and _ended(counts) >= sum(counts.values()):
                break
            if fed and mended and time.time() - (fault_at or began) > FAULT_SECONDS + 5:
                break
            self.stack.supervisor.look()
            time.sleep(LOOK_EVERY)
        self._collect(feeders)
        return fault_at

    def _settle(self, database: Database, began: float, cancelled: Callable[[], bool]) -> None:
        """Wait until every job has ended."""
        while not cancelled() and time.time() - began < LONGEST:
            counts = self._counts(database)
            self._tell(counts, "waiting for retries")
            if _ended(counts) >= sum(counts.values()):
                return
            self.stack.supervisor.look()
            time.sleep(LOOK_EVERY)

    def _tell(self, counts: dict[str, int], note: str) -> None:
        self.show(Progress(max(self.count, sum(counts.values())), counts, note))

    @staticmethod
    def _counts(database: Database) -> dict[str, int]:
        with database.read() as conn:
            rows = conn.exec_driver_sql("SELECT state, count(*) FROM jobs GROUP BY state").all()
        return {str(state): int(count) for state, count in rows}

    # --- the end

    def _summary(self, database: Database, began: float, fault_at: float | None) -> Summary:
        with database.read() as conn:
            rows = conn.execute(select(jobs.c.id, jobs.c.bucket, jobs.c.state, jobs.c.reason)).all()
        return summarise(
            answered=self.answered,
            jobs=[(format_id(row.id), row.bucket, row.state, row.reason) for row in rows],
            witness=read(self.data / "simulator" / "witness.jsonl"),
            began=began,
            fault_at=fault_at,
            failing=FAILING,
            failing_domains=DOMAINS[FAILING],
            clock_rate=RATE,
        )


def settings_toml(policy: Path, now: float, mx_map: Mapping[str, Sequence[str]]) -> str:
    """The demo's settings: what JSON calls a string or a list of them, TOML does too."""
    lines = [
        f"policy = {json.dumps(str(policy))}",
        "[clock]",
        f"origin = {now!r}",
        f"rate = {RATE!r}",
        "[smtp]",
        "allow_private = true",
        "[dns.mx_map]",
        *(f"{json.dumps(domain)} = {json.dumps(hosts)}" for domain, hosts in mx_map.items()),
    ]
    return "\n".join(lines) + "\n"


def open_db(stack: Stack) -> _Closing:
    """The stack's database for a ``with`` block."""
    return _Closing(open_database(stack.settings))


class _Closing:
    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> Database:
        return self._database

    def __exit__(self, *_: object) -> None:
        self._database.close()


def _accepted(out: bytes) -> int:
    """Jobs accepted according to the JSON a `send` printed."""
    answer = msgspec.json.decode(out)
    if isinstance(answer, dict) and "accepted" in answer:
        return int(answer["accepted"])
    answers = answer if isinstance(answer, list) else [answer]
    return sum(job["status"] == "accepted" for one in answers for job in one["jobs"])


def _ended(counts: dict[str, int]) -> int:
    return sum(counts.get(state, 0) for state in SETTLED)


def fresh(data: Path) -> None:
    """Empty a demo's folder of an earlier demo; refuse a folder that is something else.

    Raises :class:`DemoError`."""
    if data.exists() and any(data.iterdir()):
        if not (data / "simulator").exists():
            raise DemoError(f"{data} is not the folder of an earlier demo; give another --data")
        shutil.rmtree(data)
    data.mkdir(parents=True, exist_ok=True, mode=0o700)


def write(summary: Summary, path: Path) -> None:
    """Write ``summary.json``."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    sys.stdout.flush()
