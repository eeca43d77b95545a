"""CPU time and memory of process trees, from /proc (Linux)."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SAMPLE_EVERY = 0.25  # real seconds


def _stats() -> dict[int, tuple[int, float, int]]:
    """Every process: parent, CPU seconds with those of its reaped children, resident bytes."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile; its parent's figure has it
        fields = text.rpartition(")")[2].split()
        ticks = sum(int(fields[n]) for n in (11, 12, 13, 14))
        found[int(folder.name)] = (int(fields[1]), ticks / TICK, int(fields[21]) * PAGE)
    return found


def usage(roots: Mapping[str, int]) -> dict[str, tuple[float, int]]:
    """CPU seconds and resident bytes of each tree; shared pages count once a process."""
    stats = _stats()
    children: dict[int, list[int]] = defaultdict(list)
    for pid, (parent, _, _) in stats.items():
        children[parent].append(pid)
    result = {}
    for name, root in roots.items():
        cpu, memory, todo = 0.0, 0, [root]
        while todo:
            pid = todo.pop()
            if pid in stats:
                cpu += stats[pid][1]
                memory += stats[pid][2]
                todo += children[pid]
        result[name] = (cpu, memory)
    return result


class Meter:
    """CPU between two moments, and the peak of memory between them, by name."""

    def __init__(self, roots: Mapping[str, int]) -> None:
        self._roots = dict(roots)
        self._before = {name: cpu for name, (cpu, _) in usage(self._roots).items()}
        self.peak: dict[str, int] = defaultdict(int)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._end.wait(SAMPLE_EVERY):
            for name, (_, memory) in usage(self._roots).items():
                self.peak[name] = max(self.peak[name], memory)

    def stop(self) -> dict[str, float]:
        """CPU seconds since the start, by name."""
        self._end.set()
        self._thread.join()
        return {name: cpu - self._before[name] for name, (cpu, _) in usage(self._roots).items()}


def busy() -> tuple[float, float]:
    """CPU seconds the whole machine was busy and idle since it started."""
    fields = [int(n) / TICK for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, idle


def wait_quiet(roots: Mapping[str, int], share: float, longest: float = 15.0) -> None:
    """Wait until these trees use less than ``share`` of one core over half a second."""
    end = time.monotonic() + longest
    before = sum(cpu for cpu, _ in usage(roots).values())
    while time.monotonic() < end:
        time.sleep(0.5)
        now = sum(cpu for cpu, _ in usage(roots).values())
        if (now - before) / 0.5 < share:
            return
        before = now


def speed() -> float:
    """How fast one core is right now, between other tenants of its host: thousands of small JSON documents
    written and read again a second. Two runs on one machine are comparable where this is alike."""
    document = {"id": 1, "to": ["user7@d7.example.test"], "tags": ["news", "autumn"], "score": 0.93}
    begun, count = time.process_time(), 10_000
    for _ in range(count):
        json.loads(json.dumps(document))
    return count / (time.process_time() - begun) / 1000


def describe() -> dict[str, str | int]:
    """The machine class of a run."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    load = os.getloadavg()[0]
    return {
        "cores": os.cpu_count() or 0,
        "cpu": model,
        "memory_mib": memory,
        "load_before": f"{load:.2f}",
    }
