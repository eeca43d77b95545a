"""One supervised process: started in a session of its own, its output in a log file, restarted with
back-off when it dies or its beat stops."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mailweir.plumbing.beat import VARIABLE, age

FIRST_PAUSE = 0.2  # real seconds before the first restart
LONGEST_PAUSE = 10.0
HEALTHY_AFTER = 20.0  # a process that ran so long starts its next back-off anew
STALLED_AFTER = 60.0  # without a beat
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Spec:
    """What to run. ``beats``: the process touches its beat, so a standstill is noticed."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    beats: bool = True
    grace: float = 30.0  # real seconds between SIGTERM and SIGKILL


def die_with_parent() -> None:
    """In the child, before exec: get SIGKILL when the supervisor dies (Linux; elsewhere no effect)."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return  # not Linux: the process then outlives a killed supervisor


class Process:
    """A process and its history."""

    def __init__(self, spec: Spec, logs: Path, run: Path) -> None:
        self.spec = spec
        self.log = logs / f"{spec.name}.log"
        self.beat = run / f"{spec.name}.beat"
        self.restarts = 0
        self.last_exit: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = FIRST_PAUSE
        self._not_before = 0.0

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def start(self) -> None:
        """Start it now."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.beat.parent.mkdir(parents=True, exist_ok=True)
        self.beat.unlink(missing_ok=True)
        with self.log.open("ab") as out:
            self._child = subprocess.Popen(
                list(self.spec.command),
                env={**os.environ, **self.spec.env, VARIABLE: str(self.beat)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._started = time.monotonic()

    def watch(self) -> str | None:
        """Look once: restart what died or stands still, when its pause is over. What was done, if so."""
        now = time.monotonic()
        child = self._child
        if child is None:
            if now >= self._not_before:
                self.start()
                return f"{self.spec.name} restarted (pid {self.pid})"
            return None
        code = child.poll()
        if code is not None:
            if now - self._started > HEALTHY_AFTER:
                self._pause = FIRST_PAUSE
            self.last_exit = code
            self.restarts += 1
            self._child = None
            self._not_before = now + self._pause
            said = f"{self.spec.name} ended ({_why(code)}); again in {self._pause:.1f} s, see {self.log}"
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            return said
        if self.spec.beats and now - self._started > STALLED_AFTER:
            silent = age(self.beat)
            if silent is None or silent > STALLED_AFTER:
                child.kill()
                return f"{self.spec.name} made no progress for {STALLED_AFTER:.0f} s; killed"
        return None

    def terminate(self) -> None:
        """Ask it to end."""
        if self.pid is not None and self._child is not None:
            self._child.terminate()

    def wait(self, deadline: float) -> bool:
        """Wait for its end until ``deadline`` (monotonic), then kill. True when it ended by itself."""
        child = self._child
        if child is None:
            return True
        try:
            child.wait(max(0.05, deadline - time.monotonic()))
            return True
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return False


def _why(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
