"""Processes that stand still (SIGSTOP) for a test."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

LONGEST = 60.0  # real seconds until a busy machine has stopped every thread


def stop(*pids: int) -> None:
    """Send SIGSTOP and wait until every thread stands still: until the kernel has run the one it gave the
    signal to, the others go on, and answer."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + LONGEST
    while not all(_stopped(pid) for pid in pids):
        if time.monotonic() > deadline:
            raise AssertionError(f"{pids} did not stop within {LONGEST:.0f} s")
        time.sleep(0.005)  # between two looks


def group_members(group: int) -> list[int]:
    """Processes of a process group."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (state := _stat(folder / "stat")) and int(state[2]) == group:
            found.append(int(folder.name))
    return found


def _stopped(pid: int) -> bool:
    threads = [_stat(task / "stat") for task in Path(f"/proc/{pid}/task").glob("*")]
    return all(not stat or stat[0] in "TtZX" for stat in threads)


def _stat(path: Path) -> list[str]:
    """What follows the command's name (proc(5)): state, parent, group...; nothing of one that is gone."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
