"""Metrics worked out when they are asked for: what alert rules need and no single process counts."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from console.reading import Reader
from mailweir.plumbing.database import DatabaseUnavailable


class HouseMetrics(Collector):
    """``mailweir_source_cut_off`` is 1 for each source that the policy needs in a queue and that no live
    worker of the queue reaches (S34); ``mailweir_workers`` counts the live workers of each queue.
    Register it in the web process."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def describe(self) -> list[Metric]:
        """Nothing is known before it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics now; none of cut-off sources while the database is away."""
        workers = GaugeMetricFamily(
            "mailweir_workers", "Live workers that serve a queue.", labels=["queue"]
        )
        counts: dict[str, int] = {}
        for worker in self._reader.workers():
            for queue in worker["queues"]:
                counts[queue] = counts.get(queue, 0) + 1
        for queue, count in sorted(counts.items()):
            workers.add_metric([queue], count)
        yield workers
        cut_off = GaugeMetricFamily(
            "mailweir_source_cut_off",
            "1 while no live worker of a queue reaches a source its jobs may need.",
            labels=["queue", "source"],
        )
        try:
            for row in self._reader.cut_off():
                cut_off.add_metric([row.queue, row.source], 1)
        except DatabaseUnavailable:
            return
        yield cut_off
