"""One row of the table: a stack, an accept process, a sink; measured, then checked."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.machine import Meter, busy, speed, wait_quiet
from benchmarks.sinks import OwnSink, Sink, SmtpSink
from benchmarks.stack import Stack, stack

RUN_WITHIN = 600.0
SENT = "SELECT count(*) FROM jobs WHERE state = 'sent'"


@dataclass
class Figures:
    """What one run of one row measured."""

    row: str
    messages: int
    seconds: float
    cpu_per_1k: dict[str, float]
    peak_mib: dict[str, float]
    promise: str
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Messages a second, from the first accept to the last 250."""
        return self.messages / self.seconds

    @property
    def cpu(self) -> float:
        """CPU seconds per 1,000 messages of everything but the sink."""
        return sum(self.cpu_per_1k.values())


class Failed(Exception):
    """A run whose end is not what it must be; its figures are worth nothing."""


@dataclass(frozen=True)
class Case:
    """A row of ours."""

    name: str
    on: str  # embedded | postgresql | postgresql-tables
    mode: str = "finished"  # of benchmarks.feed
    signed: bool = False
    tls: bool = False


OURS = (
    "row committed with fsync before accept; a kill or a power loss loses nothing; "
    "only mails whose body was out may be uncertain (N41)"
)


class Feeder:
    """The accept process: ready, go, done."""

    def __init__(self, running: Stack, *arguments: str, name: str = "accept") -> None:
        running.start(
            name, "benchmarks.feed", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        process = running.processes[name]
        assert process.stdin is not None
        assert process.stdout is not None
        self._in: IO[bytes] = process.stdin
        self._out: IO[bytes] = process.stdout
        if self._out.readline() != b"ready\n":
            raise Failed("the accept process did not start: see its log above")

    def go(self) -> None:
        """Begin to accept."""
        self._in.write(b"go\n")
        self._in.flush()

    def done(self) -> dict[str, Any]:
        """Wait for its end; when it began, ended and what it accepted."""
        line = self._out.readline()
        if not line:
            raise Failed("the accept process died")
        answer: dict[str, Any] = json.loads(line)
        return answer


def wait_count(sink: Sink, count: int, alive: Callable[[], None]) -> float:
    """When the sink's count reached ``count`` (real Unix seconds)."""
    end = time.monotonic() + RUN_WITHIN
    while sink.count() < count:
        alive()
        if time.monotonic() > end:
            raise Failed(f"the sink has {sink.count()} of {count} after {RUN_WITHIN:.0f} s")
        time.sleep(0.01)
    return time.time()


class Lag:
    """How old the newest attempt was when the reputation process counted it, by its own metrics: the most,
    in seconds. An attempt's age begins with its conversation, so its commit is in it."""

    EVERY = 0.5

    def __init__(self, running: Stack) -> None:
        self._url = f"http://127.0.0.1:{running.metrics}/metrics"
        self._next = 0.0
        self.most = 0.0

    def look(self) -> None:
        """Look, where the last look is old."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self.EVERY
        with urllib.request.urlopen(self._url, timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("mailweir_reputation_lag_seconds "):
                    self.most = max(self.most, float(line.split()[1]))


def run(case: Case, messages: int, workers: int) -> Figures:
    """Run a row of ours once. Raises :class:`Failed` when the checks after it do not hold."""
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        sink: Sink = OwnSink(folder, tls=True) if case.tls else SmtpSink(folder)
        try:
            with stack(
                folder, sink.port, on=case.on, workers=workers, signed=case.signed, tls=case.tls
            ) as running:
                feeder = Feeder(running, case.mode, str(messages))
                wait_quiet(running.roots, 0.35)
                quick = speed()
                meter, machine = Meter({**running.roots, "sink": sink.process.pid}), busy()
                feeder.go()
                lag = Lag(running)
                ended = wait_count(sink, messages, lag.look)
                now = busy()
                idle = (now[1] - machine[1]) / (now[0] + now[1] - sum(machine))
                accepted = feeder.done()
                running.wait("every row sent", lambda: running.count(SENT) >= messages)
                running.wait("the end of everything", lambda: not running.leftovers())
                wait_quiet(running.roots, 0.35)
                cpu = meter.stop()
                theirs = busy()[0] - machine[0] - sum(cpu.values())
                sink_cpu = cpu.pop("sink")
                check(running, sink, messages)
                chunks = running.count("SELECT count(*) FROM chunks")
                decisions = running.count("SELECT count(*) FROM decisions")
        finally:
            sink.close()
    return Figures(
        case.name,
        messages,
        ended - accepted["began"],
        {part: seconds * 1000 / messages for part, seconds in cpu.items()},
        {part: size / 2**20 for part, size in meter.peak.items()},
        OURS,
        {
            "accept_per_s": messages / (accepted["ended"] - accepted["began"]),
            "jobs_per_chunk": messages / chunks,
            "decisions_per_job": decisions / messages,  # more than 1: jobs were held or sent back
            "reputation_lag_s": lag.most,
            "sink_cpu_per_1k": sink_cpu * 1000 / messages,
            "core_speed": quick,
            "idle_share": idle,  # of the machine, until the last 250
            "others_cpu_per_1k": theirs
            * 1000
            / messages,  # kernel threads, this harness, strangers
        },
    )


def check(running: Stack, sink: Sink | None, messages: int) -> None:
    """Sink count, attempts, states, leftovers. Raises :class:`Failed`."""
    wrong = running.leftovers()
    if sink is not None and sink.count() != messages:
        wrong.append(f"the sink has {sink.count()} of {messages} messages")
    attempts = running.count("SELECT count(*) FROM attempts")
    if attempts != messages:
        wrong.append(f"{attempts} attempts for {messages} messages")
    unsent = running.count("SELECT count(*) FROM jobs WHERE state <> 'sent'")
    if unsent:
        wrong.append(f"{unsent} jobs are not sent")
    if wrong:
        raise Failed("; ".join(wrong))


def main() -> None:
    """One row, one run, for profiling by hand: python -m benchmarks.rows embedded finished 20000."""
    on, mode, count = sys.argv[1:4]
    workers = next((int(word) for word in sys.argv[4:] if word.isdigit()), 2)
    case = Case("x", on, mode, signed=mode == "merged", tls="tls" in sys.argv)
    got = run(case, int(count), workers)
    if "json" in sys.argv:
        parts = {"cpu_s_per_1k": got.cpu, "by_process": got.cpu_per_1k, **got.more}
        print(json.dumps({"per_s": got.rate, **parts}))
        return
    print(f"{got.rate:.0f}/s  {got.cpu:.3f} CPU s/1k", got.more)
    print({part: round(value, 3) for part, value in got.cpu_per_1k.items()})
    print({part: round(value) for part, value in got.peak_mib.items()})


if __name__ == "__main__":
    main()
