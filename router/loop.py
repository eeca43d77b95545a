"""The router's loop: look which flows wait, plan, dispatch, reconcile; for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from mailweir.contracts.job import Bucket
from mailweir.contracts.route import THROTTLED
from mailweir.plumbing import keys
from mailweir.plumbing.beat import Beat
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import DatabaseUnavailable
from mailweir.plumbing.settings import RouterSettings
from mailweir.spool.store import Flow, Pick, Spool, Window
from router.dispatch import Dispatcher, Inputs
from router.lanes import LaneShares, Rival
from router.policy.fairness import STEP_SHARE, plan, served
from router.precedence import FULL, ORDER, Yielding, better, together
from router.reconciler import Reconciler
from router.window import Mix, Windows

log = structlog.get_logger(__name__)

LONGEST_PAUSE = 5.0  # real seconds, while the database is away


class Turn:
    """What one turn has seen so far."""

    def __init__(self, inputs: Inputs, spool: Spool, clock: Clock) -> None:
        self.inputs = inputs
        self._spool, self._clock = spool, clock
        self._flows: dict[Bucket, Sequence[Flow]] = {}
        self._window: Window | None = None
        # per bucket with due jobs: how many were dispatched, and its full queues
        self.went: dict[Bucket, tuple[int, set[str]]] = {}

    @property
    def window(self) -> Window:
        """Jobs dispatched and not yet taken."""
        if self._window is None:
            self._window = self._spool.window()
        return self._window

    def flows(self, bucket: Bucket) -> Sequence[Flow]:
        """Flows with waiting jobs."""
        if bucket not in self._flows:
            self._flows[bucket] = self._spool.flows(bucket, self._clock.now())
        return self._flows[bucket]

    def due(self, bucket: Bucket) -> bool:
        """Whether a job of the bucket may be routed now."""
        now = self._clock.now()
        return any(flow.head_due <= now for flow in self.flows(bucket))


class Loop:
    """One router process: the buckets it serves, the better ones first (``router.precedence``)."""

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
        rest: Callable[[bool], None],
    ) -> None:
        """``rest(due)`` returns when it is time to look again where nothing moved; ``due``: transactional
        jobs are, but found no room."""
        self._buckets = tuple(bucket for bucket in ORDER if bucket in buckets)
        self._spool = spool
        self._dispatcher = dispatcher
        self._reconciler = reconciler
        self._windows = windows
        self._inputs = inputs
        self._clock = clock
        self._settings = settings
        self._queues = queues
        self._shares = {bucket: LaneShares(settings.window_max) for bucket in buckets}
        self._served: dict[Bucket, dict[str, float]] = {bucket: {} for bucket in buckets}
        self._mixes = {bucket: Mix() for bucket in buckets}
        floor = settings.window_min * (1 - STEP_SHARE) / settings.window_seconds
        self._yielding = {bucket: Yielding(floor) for bucket in buckets}
        self._rest = rest
        self._due = False

    def _rival(self, other: Bucket, bucket: Bucket, now: float, turn: Turn) -> Rival:
        """How a bucket with the same sources stands; only the better ones' due jobs matter."""
        first = other in better(bucket)
        due = [f.lane for f in turn.flows(other) if f.head_due <= now] if first else []
        return Rival(first, frozenset(due), turn.window.lanes.get(other, {}))

    def run(self, stopped: Callable[[], bool]) -> None:
        """Turn until ``stopped()``; a database that is away is waited for."""
        beat = Beat()
        pause = self._settings.idle
        while not stopped():
            beat.touch()
            try:
                moved = self.turn() + self._reconciler.turn()
            except DatabaseUnavailable as error:
                log.warning("database unavailable, waiting", why=str(error))
                pause = min(pause * 2, LONGEST_PAUSE)
                time.sleep(pause)
                continue
            pause = self._settings.idle
            if not moved:
                self._rest(self._due)

    def turn(self) -> int:
        """One batch for each bucket, the better ones first; how many jobs moved."""
        turn = Turn(self._inputs(), self._spool, self._clock)
        self._due = False
        return sum(self._bucket(bucket, turn) for bucket in self._buckets)

    def _bucket(self, bucket: Bucket, turn: Turn) -> int:
        # the cheaper look first: at rest nothing is due, under load the window is full
        if bucket is Bucket.TRANSACTIONAL:
            self._due = turn.due(bucket)
            if not self._due:
                return 0
        queues = tuple(q for q in self._queues() if keys.queue_bucket(q) is bucket)
        sizes = self._windows.sizes(queues)
        waiting = turn.window.queues
        room = {queue: max(0, sizes[queue] - waiting.get(queue, 0)) for queue in queues}
        ahead = self._ahead(queues, turn)
        real = time.monotonic()
        patient = {} if bucket is Bucket.TRANSACTIONAL else sizes
        total = self._mixes[bucket].fits(room, patient, self._settings.batch, real)
        total = self._yielding[bucket].room(total, ahead, real)
        if total <= 0 and bucket is self._buckets[-1]:
            return 0
        if not turn.due(bucket):
            return 0
        now, flows = self._clock.now(), turn.flows(bucket)
        picks = self._plan(bucket, flows, total, now, turn, queues) if total > 0 else []
        if not picks:
            turn.went[bucket] = (0, _full(room, sizes, {}))
            return 0
        tally = self._dispatcher.batch(bucket, picks, turn.inputs, lambda queue: room.get(queue, 0))
        self._shares[bucket].paces.gone(tally.by_lane)
        self._mixes[bucket].learn(tally.wanted)
        turn.went[bucket] = (tally.dispatched, _full(room, sizes, tally.by_queue))
        self._yielding[bucket].gone(tally.dispatched)
        return tally.dispatched + tally.held + tally.ended

    def _ahead(self, queues: Sequence[str], turn: Turn) -> int | None:
        """Jobs of better buckets dispatched in this turn that wait before a full queue for the workers
        these queues have too; None where none does."""
        found = [
            dispatched
            for dispatched, full in turn.went.values()
            if any(together(turn.inputs.fleets, one, other) for one in full for other in queues)
        ]
        return sum(found) if found else None

    def _plan(
        self,
        bucket: Bucket,
        flows: Sequence[Flow],
        room: int,
        now: float,
        turn: Turn,
        queues: tuple[str, ...],
    ) -> list[Pick]:
        inputs = turn.inputs
        compiled = inputs.policies.live
        sources = [name for name, s in compiled.sources.items() if bucket in s.buckets]
        shares = self._shares[bucket]
        slot, into = divmod(time.time() / keys.FLEET_SLOT, 1)
        shares.paces.turn(int(slot), lambda of: self._windows.sent_back(queues, of))
        lanes = shares.room(
            {flow.lane for flow in flows},
            sources,
            bucket,
            compiled.policy,
            inputs.snapshot,
            inputs.fast(),
            turn.window.lanes.get(bucket, {}),
            [self._rival(other, bucket, now, turn) for other in compiled.rivals[bucket]],
            into,
        )
        weights = compiled.policy.tenants
        before = self._served[bucket]
        chosen = plan(flows, room, now, lanes, weights, self._settings.ageing, before=before)
        self._served[bucket] = served(chosen, flows, weights, before)
        return [Pick(flow, limit) for flow, limit in chosen]


def _full(room: Mapping[str, int], sizes: Mapping[str, int], given: Mapping[str, int]) -> set[str]:
    """The queues that have hardly room left after a batch; a throttled one waits by itself."""
    return {
        queue
        for queue, places in room.items()
        if THROTTLED not in queue and places - given.get(queue, 0) <= FULL * sizes[queue]
    }
