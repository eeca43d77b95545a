"""Transactional latency while a bulk backlog is worked off at full speed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.machine import Meter
from benchmarks.rows import OURS, Failed, Feeder, Figures
from benchmarks.sinks import OwnSink, SmtpSink
from benchmarks.stack import stack


def percentile(sorted_values: list[float], share: float) -> float:
    """The value below which ``share`` of the values lie."""
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def run(on: str, backlog: int, count: int, rate: float, workers: int) -> Figures:
    """``count`` mails at ``rate`` a second behind ``backlog`` bulk jobs. Raises :class:`Failed`."""
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        bulk = SmtpSink(folder)
        times = OwnSink(folder, times=True)
        try:
            # transactional mail has a sink of its own, which notes when each one came
            mx_map = {f"d{n}.example.test": f"127.0.0.1:{bulk.port}" for n in range(200)}
            with stack(
                folder, times.port, on=on, workers=workers, transactional=True, mx_map=mx_map,
                later=True,
            ) as running:  # fmt: skip
                feeder = Feeder(running, "shared", str(backlog), name="backlog")
                feeder.go()
                feeder.done()
                mail = Feeder(running, "finished", str(count), "--rate", str(rate))
                running.begin()
                running.wait("bulk at full speed", lambda: bulk.count() > backlog * 0.02)
                before = bulk.count()
                meter = Meter(running.roots)
                mail.go()
                accepted = mail.done()
                running.wait("every transactional mail", lambda: times.count() >= count, 120)
                bulk_sent = bulk.count() - before
                cpu = meter.stop()
                left = running.count(
                    "SELECT count(*) FROM jobs WHERE bucket = 'bulk' AND state = 'accepted'"
                )
                if left < backlog * 0.02:
                    raise Failed(f"the backlog of {backlog} ran out during the measurement")
                sent = "SELECT count(*) FROM jobs WHERE bucket = 'transactional' AND state = 'sent'"
                running.wait("their rows", lambda: running.count(sent) >= count)
        finally:
            bulk.close()
            times.close()
        arrived = {}
        for line in times.times.read_text().splitlines():
            rcpt, at = line.split()
            arrived[rcpt] = float(at)
    if len(arrived) != count:
        raise Failed(f"{len(arrived)} of {count} transactional mails reached their sink")
    whole = sorted(arrived[r] - due for r, due, _ in accepted["accepted"])
    after = sorted(arrived[r] - done for r, _, done in accepted["accepted"])
    seconds = accepted["ended"] - accepted["began"]
    mails = count + bulk_sent
    return Figures(
        f"transactional {rate:.0f}/s beside {backlog:,} bulk, {on}",
        mails,
        seconds,
        {part: value * 1000 / mails for part, value in cpu.items()},
        {part: size / 2**20 for part, size in meter.peak.items()},
        OURS,
        {
            "latency_ms": {
                f"p{share}": round(percentile(whole, share / 100) * 1000, 1)
                for share in (50, 95, 99)
            },
            "from_commit_ms": {
                f"p{share}": round(percentile(after, share / 100) * 1000, 1)
                for share in (50, 95, 99)
            },
            "bulk_per_s": round(bulk_sent / seconds),
            "backlog_left": left,
        },
    )
