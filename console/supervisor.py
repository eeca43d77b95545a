"""Starts and supervises the embedded stack: every process of Mailweir on one machine.

Order matters only once: the data directory is locked, the database migrated, the state server up, a
policy in force and a key made; then everything else starts together. A process that dies is started
again with back-off; the supervisor itself keeps nothing that a restart would lose.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from console.process import Process, Spec

LOOK_EVERY = 0.1  # real seconds


class AlreadyRunning(Exception):
    """Another supervisor holds this data directory; stop it, or give another ``--data``."""


class Supervisor:
    """Runs a list of processes in stages until told to stop."""

    def __init__(self, data: Path, say: Callable[[str], None]) -> None:
        self._data = data
        self._say = say
        self.processes: dict[str, Process] = {}
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Hold the data directory. Raises :class:`AlreadyRunning`."""
        self._data.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (self._data / "supervisor.lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise AlreadyRunning(
                f"{self._data} is in use by process {owner}; stop it, or give another --data"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        self._lock = file

    def start(self, specs: Sequence[Spec]) -> None:
        """Start these processes."""
        for spec in specs:
            process = Process(spec, self._data / "logs", self._data / "run")
            self.processes[spec.name] = process
            process.start()

    def look(self) -> None:
        """Restart what needs it, saying so."""
        for process in self.processes.values():
            if said := process.watch():
                self._say(said)

    def run(self, until: Callable[[], bool]) -> None:
        """Look again and again until ``until()`` is true."""
        while not until():
            self.look()
            time.sleep(LOOK_EVERY)

    def pids(self) -> Mapping[str, int | None]:
        """Process ids by name."""
        return {name: process.pid for name, process in self.processes.items()}

    def stop(self, last: Sequence[str] = ()) -> list[str]:
        """Stop everything, the processes in ``last`` after the others; names of those that had to be
        killed because they did not end within their grace."""
        killed: list[str] = []
        first = [p for name, p in self.processes.items() if name not in last]
        for group in (first, *[[self.processes[n]] for n in last if n in self.processes]):
            for process in group:
                process.terminate()
            for process in group:
                if not process.wait(time.monotonic() + process.spec.grace):
                    killed.append(process.spec.name)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        return killed
