"""End to end, from accepted rows to the sink's 250, beside what users would pick instead.

    python -m benchmarks.throughput [--messages 20000] [--runs 1] [--only NAME ...] [--json]

Real processes on this machine: two routers, Celery workers (one a core), reputation with journal and
suppression, the private Redis or Valkey, PostgreSQL where a row says so; accepting runs beside delivery,
100 rows a commit. 10 KiB messages, 200 recipient domains, Postfix' smtp-sink. CPU is everything's but the
sink's, children included, from /proc, from the first accept until everything is written and quiet. A run is
thrown away unless sink, attempts and states all agree. ``docs/performance.md`` explains the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import latency
from benchmarks.machine import describe
from benchmarks.peers import run as peers
from benchmarks.rows import Case, Failed, Figures, run
from benchmarks.sinks import Missing

CASES = (
    Case("unsigned-embedded", "embedded"),
    Case("unsigned-postgresql", "postgresql"),
    Case("unsigned-postgresql-tables", "postgresql-tables"),
    Case("signed-embedded", "embedded", "merged", signed=True),
    Case("signed-postgresql", "postgresql", "merged", signed=True),
    Case("starttls-embedded", "embedded", tls=True),
)
TARGETS: dict[str, tuple[float, float]] = {  # messages/s at least, CPU s per 1,000 at most
    "unsigned-embedded": (4000, 0.45),
    "unsigned-postgresql": (3000, 0.65),
    "signed-embedded": (2000, 0.95),
}
LATENCY_TARGET = 100.0  # ms, p95
PEER_SHARE = 5  # peers are slower: this part of the messages is enough for them
FASTER_THAN = {"celery-cached": 5.0, "postfix": 5.0, "bullmq": 2.0}  # by unsigned-embedded
Runner = Callable[[], Figures]


def rows(messages: int, workers: int, backlog: int) -> dict[str, Runner]:
    """Every row by name."""
    found: dict[str, Runner] = {c.name: partial(run, c, messages, workers) for c in CASES}
    for on in ("embedded", "postgresql"):
        found[f"transactional-{on}"] = partial(
            latency.run, on, backlog, max(200, messages // 10), 100.0, workers
        )
    few = max(200, messages // PEER_SHARE)
    found["celery-connection"] = partial(peers.celery, few, cached=False)
    found["celery-cached"] = partial(peers.celery, few, cached=True)
    found["postfix"] = partial(peers.postfix, few)
    found["bullmq"] = partial(peers.bullmq, few)
    return found


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def measure(chosen: dict[str, Runner], runs: int) -> dict[str, dict[str, Any]]:
    """Run every row ``runs`` times, in turn, so that a noisy hour hits all of them."""
    kept: dict[str, list[Figures]] = {name: [] for name in chosen}
    absent: dict[str, str] = {}
    failed: dict[str, list[str]] = {name: [] for name in chosen}
    for number in range(runs):
        for name, runner in chosen.items():
            if name in absent:
                continue
            say(f"run {number + 1}/{runs}: {name} ... (load {os.getloadavg()[0]:.1f})")
            try:
                got = runner()
            except Missing as error:
                absent[name] = f"absent: {error} is not here"
                say(f"  {absent[name]}")
                continue
            except (Failed, RuntimeError) as error:
                failed[name].append(str(error))
                say(f"  FAILED: {error}")
                continue
            kept[name].append(got)
            say(f"  {got.rate:,.0f}/s  {got.cpu:.3f} CPU s/1k  {json.dumps(got.more)}")
    return {
        name: {"absent": absent[name]} if name in absent else summary(kept[name], failed[name])
        for name in chosen
    }


def summary(runs: list[Figures], failed: list[str]) -> dict[str, Any]:
    """Medians and spread of the runs whose checks held."""
    if not runs:
        return {"failed": failed}
    rates = sorted(f.rate for f in runs)
    parts = sorted({part for f in runs for part in f.cpu_per_1k})
    middle = statistics.median(rates)
    return {
        "what": runs[0].row,
        "messages": runs[0].messages,
        "runs": len(runs),
        "per_s": round(middle),
        "per_s_all": [round(rate) for rate in rates],
        "spread": round((rates[-1] - rates[0]) / middle, 3),
        "cpu_s_per_1k": round(statistics.median(f.cpu for f in runs), 3),
        "cpu_s_per_1k_all": sorted(round(f.cpu, 3) for f in runs),
        "cpu_by_process": {
            part: round(statistics.median(f.cpu_per_1k.get(part, 0.0) for f in runs), 3)
            for part in parts
        },
        "peak_rss_mib": round(max(sum(f.peak_mib.values()) for f in runs)),
        "peak_rss_by_process": {
            part: round(max(f.peak_mib.get(part, 0.0) for f in runs)) for part in parts
        },
        "promise": runs[0].promise,
        "more": [f.more for f in runs if f.more],
        "failed": failed,
    }


def verdicts(found: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Each target that was measured, and whether it was met."""
    out: dict[str, bool] = {}
    for name, (rate, cpu) in TARGETS.items():
        if "per_s" in found.get(name, {}):
            out[f"{name}: at least {rate:,.0f}/s"] = found[name]["per_s"] >= rate
            out[f"{name}: at most {cpu} CPU s/1k"] = found[name]["cpu_s_per_1k"] <= cpu
    ours = found.get("unsigned-embedded", {}).get("per_s")
    for name, factor in FASTER_THAN.items():
        theirs = found.get(name, {}).get("per_s")
        if ours and theirs:
            out[f"unsigned-embedded: {factor:g} times {name}"] = ours >= factor * theirs
    for name, row in found.items():
        if name.startswith("transactional") and "more" in row:
            p95 = statistics.median(m["latency_ms"]["p95"] for m in row["more"])
            out[f"{name}: p95 at most {LATENCY_TARGET:.0f} ms"] = p95 <= LATENCY_TARGET
    return out


def table(found: dict[str, dict[str, Any]]) -> str:
    """For people."""
    lines = [f"{'row':24}{'msgs/s':>9}{'spread':>8}{'CPU s/1k':>10}{'RSS MiB':>9}  by process"]
    for name, row in found.items():
        if "per_s" not in row:
            why = row.get("absent") or "FAILED: " + "; ".join(row["failed"])[:200]
            lines.append(f"{name:24}  {why}")
            continue
        parts = ", ".join(f"{part} {value:g}" for part, value in row["cpu_by_process"].items())
        lines.append(
            f"{name:24}{row['per_s']:>9,}{row['spread']:>7.0%} {row['cpu_s_per_1k']:>9.3f}"
            f"{row['peak_rss_mib']:>9,}  {parts}"
        )
        for more in row["more"]:
            if "latency_ms" in more:
                lines.append(f"{'':24}accept to 250, ms: {more['latency_ms']}")
    lines.append("")
    lines += [f"{name:24}{row['promise']}" for name, row in found.items() if "promise" in row]
    lines.append("")
    lines += [f"{'met    ' if ok else 'NOT MET'} {what}" for what, ok in verdicts(found).items()]
    return "\n".join(lines)


def main() -> int:
    """0 when every check held and nothing failed, targets met or not (they depend on the machine)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 2, help="default: one a core"
    )
    parser.add_argument(
        "--backlog", type=int, default=200_000, help="bulk jobs of the latency rows"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows only")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    chosen = rows(args.messages, args.workers, args.backlog)
    unknown = sorted(set(args.only or ()) - set(chosen))
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are: {', '.join(chosen)}")
    if args.only:
        chosen = {name: runner for name, runner in chosen.items() if name in args.only}
    machine = describe()
    found = measure(chosen, args.runs)
    if args.json:
        print(json.dumps({"machine": machine, "rows": found, "targets": verdicts(found)}, indent=2))
    else:
        print(table(found))
    return 1 if any(row.get("failed") for row in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
