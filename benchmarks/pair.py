"""Two trees at the same time, run after run: what a change costs or saves where the host moves more than it.

    python -m benchmarks.pair DIR_A DIR_B [--on embedded] [--messages 15000] [--runs 4]

Both have the same neighbours, clock speed and disk at every moment, so the ratio of their CPU seconds is
steady to 2 % where single runs differ by 20 (a tree against itself, five pairs: 0.985 to 1.019). Rates mean
nothing here, and what a process does by time, not by mail, counts about twice.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.throughput import say


def start(tree: Path, on: str, messages: int) -> subprocess.Popen[str]:
    """One row of a tree, as a process that prints its figures."""
    command = [sys.executable, "-m", "benchmarks.rows", on, "finished", str(messages), "json"]
    env = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.Popen(command, cwd=tree, env=env, stdout=subprocess.PIPE, text=True)


def both(trees: tuple[Path, Path], on: str, messages: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of both, run at once. Raises :class:`RuntimeError` where one of them failed."""
    running = [start(tree, on, messages) for tree in trees]
    answers = [process.communicate()[0] for process in running]
    for tree, process in zip(trees, running, strict=True):
        if process.returncode:
            raise RuntimeError(f"{tree}: the row failed, see above")
    a, b = (json.loads(answer.splitlines()[-1]) for answer in answers)
    return a, b


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument(
        "--on", choices=("embedded", "postgresql", "postgresql-tables"), default="embedded"
    )
    parser.add_argument("--messages", type=int, default=15_000)
    parser.add_argument("--runs", type=int, default=4)
    args = parser.parse_args()
    trees = (args.a.resolve(), args.b.resolve())
    pairs = []
    for number in range(args.runs):
        a, b = both(trees, args.on, args.messages)
        pairs.append((a, b))
        say(f"run {number + 1}/{args.runs}: {a['cpu_s_per_1k']:.3f} and {b['cpu_s_per_1k']:.3f}")
    ratios = [b["cpu_s_per_1k"] / a["cpu_s_per_1k"] for a, b in pairs]
    print(f"B / A: median {statistics.median(ratios):.3f}  {[round(r, 3) for r in sorted(ratios)]}")
    for part in pairs[0][0]["by_process"]:
        mean = [
            statistics.mean(pair[side]["by_process"][part] for pair in pairs) for side in (0, 1)
        ]
        print(f"  {part:<22} {mean[0]:.3f} -> {mean[1]:.3f}")


if __name__ == "__main__":
    main()
