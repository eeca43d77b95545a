"""The router's loop: look which flows wait, plan, dispatch, reconcile; for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from mailweir.contracts.job import Bucket
from mailweir.plumbing import keys
from mailweir.plumbing.beat import Beat
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import DatabaseUnavailable
from mailweir.plumbing.settings import RouterSettings
from mailweir.spool.store import Flow, Pick, Spool
from router.dispatch import Dispatcher, Inputs
from router.lanes import LaneShares
from router.policy.fairness import plan
from router.reconciler import Reconciler
from router.window import Mix, Windows

log = structlog.get_logger(__name__)

FLOWS_EVERY = 0.25  # real seconds a list of flows serves when it was long to make
LONGEST_PAUSE = 5.0  # real seconds, while the database is away


class Loop:
    """One router process: the buckets it serves, in the order of their claim on it."""

    def __init__(
        self,
        buckets: Sequence[Bucket],
        spool: Spool,
        dispatcher: Dispatcher,
        reconciler: Reconciler,
        windows: Windows,
        inputs: Callable[[], Inputs],
        clock: Clock,
        settings: RouterSettings,
        queues: Callable[[], Sequence[str]],
    ) -> None:
        self._buckets = tuple(buckets)
        self._spool = spool
        self._dispatcher = dispatcher
        self._reconciler = reconciler
        self._windows = windows
        self._inputs = inputs
        self._clock = clock
        self._settings = settings
        self._queues = queues
        self._shares = {bucket: LaneShares(settings.window_max) for bucket in buckets}
        self._mixes = {bucket: Mix() for bucket in buckets}
        self._idle = settings.idle if Bucket.TRANSACTIONAL in self._buckets else settings.idle_bulk

    def run(self, stopped: Callable[[], bool]) -> None:
        """Turn until ``stopped()``; a database that is away is waited for."""
        beat = Beat()
        pause = self._idle
        while not stopped():
            beat.touch()
            try:
                moved = self.turn() + self._reconciler.turn()
            except DatabaseUnavailable as error:
                log.warning("database unavailable, waiting", why=str(error))
                pause = min(pause * 2, LONGEST_PAUSE)
                time.sleep(pause)
                continue
            pause = self._idle
            if not moved:
                time.sleep(self._idle)

    def turn(self) -> int:
        """One batch for each bucket; how many jobs moved."""
        waiting = self._spool.in_window()
        inputs = self._inputs()
        return sum(self._bucket(bucket, inputs, waiting) for bucket in self._buckets)

    def _bucket(self, bucket: Bucket, inputs: Inputs, waiting: Mapping[str, int]) -> int:
        queues = tuple(q for q in self._queues() if keys.queue_bucket(q) is bucket)
        sizes = self._windows.sizes(queues)
        room = {queue: max(0, sizes[queue] - waiting.get(queue, 0)) for queue in queues}
        total = min(self._settings.batch, self._mixes[bucket].fits(room))
        if total <= 0:
            return 0
        now = self._clock.now()
        flows = self._spool.flows(bucket, now)
        if not flows:
            return 0
        picks = self._plan(bucket, flows, total, now, inputs)
        if not picks:
            return 0
        tally = self._dispatcher.batch(bucket, picks, inputs, lambda queue: room.get(queue, 0))
        self._shares[bucket].learn(tally.claimed_by_lane, tally.throttled_by_lane)
        self._mixes[bucket].learn(tally.wanted)
        return tally.dispatched + tally.held + tally.ended

    def _plan(
        self, bucket: Bucket, flows: Sequence[Flow], room: int, now: float, inputs: Inputs
    ) -> list[Pick]:
        compiled = inputs.policies.live
        sources = [name for name, s in compiled.sources.items() if bucket in s.buckets]
        lanes = self._shares[bucket].room(
            {flow.lane for flow in flows},
            sources,
            bucket,
            compiled.policy,
            inputs.snapshot,
            inputs.fast,
            self._spool.in_window_lanes(bucket),
        )
        chosen = plan(flows, room, now, lanes, compiled.policy.tenants, self._settings.ageing)
        return [Pick(flow, limit) for flow, limit in chosen]
