"""Where the mail of a benchmark ends: Postfix' smtp-sink, or our own sink for TLS and for times."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from simulator.ports import free_port

READY_WITHIN = 20.0


class Missing(Exception):
    """A program this row needs is not installed."""


class Sink(Protocol):
    """A running sink."""

    port: int
    process: subprocess.Popen[bytes]

    def count(self) -> int:
        """Messages accepted so far."""
        ...

    def close(self) -> None:
        """Stop it."""
        ...


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_WITHIN
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise Missing(f"the sink on port {port} did not start") from None
            time.sleep(0.02)


class SmtpSink:
    """``smtp-sink -c`` of Postfix; it counts on its standard output."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("smtp-sink") or "/usr/sbin/smtp-sink"
        if not Path(program).exists():
            raise Missing("smtp-sink (Debian: postfix)")
        self.port = free_port()
        self._out = folder / f"sink-{self.port}"
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [program, *user, "-c", "-m", "3000", f"127.0.0.1:{self.port}", "1000"],
                stdout=out,
                stderr=subprocess.DEVNULL,
            )
        _await(self.port, self.process)

    def count(self) -> int:
        """From the last complete line of its counters."""
        with self._out.open("rb") as out:
            out.seek(max(0, self._out.stat().st_size - 200))
            tail = out.read()
        for line in reversed(tail.replace(b"\n", b"\r").split(b"\r")):
            words = dict(w.split(b"=", 1) for w in line.split() if b"=" in w)
            if b"mesg" in words and words[b"mesg"].isdigit():
                return int(words[b"mesg"])
        return 0

    def close(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait(10)


class OwnSink:
    """``python -m benchmarks.sink``: STARTTLS, or the time of every message by its recipient."""

    def __init__(self, folder: Path, *, tls: bool = False, times: bool = False) -> None:
        self.port = free_port()
        self.times = folder / f"times-{self.port}"
        self._count = folder / f"count-{self.port}"
        options = [str(self.port), str(self._count)]
        if tls:
            options += ["--tls", str(folder)]
        if times:
            options += ["--times", str(self.times)]
        self.process = subprocess.Popen([sys.executable, "-m", "benchmarks.sink", *options])
        _await(self.port, self.process)

    def count(self) -> int:
        """What it wrote last; some hundredths of a second old."""
        return int(self._count.read_bytes() or b"0") if self._count.exists() else 0

    def close(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait(10)
