"""Which limits bind a job of a run: worked out once for all that are alike, as long as nothing changes."""

from __future__ import annotations

from mailweir.contracts.policy import Policy, Provider
from mailweir.contracts.snapshot import Snapshot
from mailweir.spool.store import Work
from workers.engine_run import Run
from workers.throttle.layers import Ask, layers_for

KEPT = 4096
"""Kinds of jobs remembered; more are forgotten together."""


class Asks:
    """Of one process."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._of: tuple[Policy, Snapshot] | None = None  # what they were worked out from
        self._known: dict[tuple[object, ...], Ask] = {}

    def get(
        self, run: Run, work: Work, provider: Provider, slowed: tuple[str, float] | None
    ) -> Ask:
        """``slowed``: the job's campaign and its rate, where it is slowed."""
        if self._of is None or self._of[0] is not run.policy or self._of[1] is not run.snapshot:
            self._of, self._known = (run.policy, run.snapshot), {}
        job, source = work.job, run.source
        throttled = ".throttled" in run.chunk.queue
        alike = (
            source.name,
            provider.name,
            work.pool,
            job.bucket,
            job.tenant,
            work.orders,
            throttled,
            slowed,
        )
        known = self._known.get(alike)
        if known is None:
            if len(self._known) >= KEPT:
                self._known.clear()
            layers = layers_for(
                run.policy,
                run.snapshot,
                source=source,
                provider=provider,
                pool=work.pool,
                bucket=job.bucket,
                tenant=job.tenant,
                orders=work.orders,
                throttled=throttled,
                worker=self._worker,
                slowed=slowed,
            )
            known = self._known[alike] = Ask(source.name, provider.name, layers)
        return known
