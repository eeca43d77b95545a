"""What a worker writes to the spool: chunks it takes, outcomes, chunks it closes; together, in one thread.

Outcomes are written within 5 ms or 32 rows. While a write runs, what arrives is collected for the next:
one commit, and one turn at the write lock, for all of it. After the commit the attempts' ids are announced;
what the attempts said of their paths is booked beside the write, since a path's state must not wait for a
disk.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from types import MappingProxyType

import msgspec
import structlog
from prometheus_client import Counter, Histogram
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mailweir.contracts.lifecycle import State
from mailweir.plumbing import keys
from mailweir.plumbing.database import DatabaseUnavailable
from mailweir.plumbing.events import ATTEMPT, announce_async
from mailweir.plumbing.wire import Command, wire_of
from mailweir.spool.store import Outcome, Spool, Taking, Turn
from workers.policy.outcome import PathEvent
from workers.throttle.types import Booking, Limiter

log = structlog.get_logger(__name__)

WRITE_MAX = 100
"""Outcomes of one transaction at most (SQLite: the lock must stay short)."""
TAKE_MAX = 8
"""Chunks taken in one transaction at most."""
RETRY_FIRST, RETRY_MAX = 0.1, 5.0
SLOTS_KEPT = 12
"""Of finished jobs: more than the ten seconds anybody looks back."""

OUTCOMES = Counter("mailweir_outcomes_total", "Outcomes of jobs taken.", ["bucket", "state"])
LOST = Counter("mailweir_outcomes_lost_total", "Outcomes of jobs that were no longer ours (fence).")
STUCK = Counter(
    "mailweir_outcomes_unwritable_total", "Outcomes the spool refused; their lease runs out."
)
WRITE = Histogram(
    "mailweir_outcome_write_seconds",
    "Real seconds from the first outcome of a batch to its commit.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1, 5),
)


def outcomes_by_state() -> dict[str, float]:
    """Outcomes of this process so far, by state."""
    found: dict[str, float] = defaultdict(float)
    for metric in OUTCOMES.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                found[sample.labels["state"]] += sample.value
    return dict(found)


def _tell(taking: Mapping[int, asyncio.Future[bool]], error: Exception) -> None:
    for said in taking.values():
        if not said.done():
            said.set_exception(error)


class PathNote(msgspec.Struct, frozen=True):
    """What one attempt said of its path."""

    source: str
    provider: str
    ceiling: float
    event: PathEvent
    began: float
    hold: float = 0.0


class Writer:
    """One per process; belongs to its event loop."""

    def __init__(
        self,
        spool: Spool,
        limiter: Limiter,
        redis: Redis,
        executor: Executor,
        taker: Callable[[list[int]], Taking],
        *,
        rows: int,
        delay: float,
        unwritten: int,
    ) -> None:
        """``taker`` says for whom chunks are taken. ``rows``, ``delay``, ``unwritten``: see the settings of
        ``worker``."""
        self._taker = taker
        self._taking: dict[int, asyncio.Future[bool]] = {}
        self._spool = spool
        self._limiter = limiter
        self._wire = wire_of(redis)
        self._executor = executor
        self._rows = rows
        self._delay = delay
        self._most = unwritten
        self._unwritten = 0
        self._room = asyncio.Event()
        self._room.set()
        self._outcomes: list[Outcome] = []
        self._notes: list[PathNote] = []
        self._closing: dict[int, asyncio.Future[None]] = {}
        self._finished: dict[str, int] = defaultdict(int)
        self._sent_back: dict[tuple[str, str], int] = defaultdict(int)  # by queue and lane
        self._ended: dict[tuple[str, str], int] = defaultdict(int)  # by bucket and state
        self._first = 0.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="outcome-writer")

    def put(
        self,
        outcome: Outcome,
        bucket: str,
        queue: str,
        lane: str = "",
        note: PathNote | None = None,
    ) -> None:
        """Have an outcome written. Returns at once. ``lane`` of a job that may have to wait."""
        if not self._outcomes:
            self._first = time.monotonic()
        self._outcomes.append(outcome)
        self._unwritten += 1
        if self._unwritten >= self._most:
            self._room.clear()
        if note is not None:
            self._notes.append(note)
        self._ended[bucket, outcome.state] += 1
        if outcome.attempt is not None:
            self._finished[queue] += 1
        elif outcome.state is State.HELD:
            self._sent_back[queue, lane] += 1
        if len(self._outcomes) == 1 or len(self._outcomes) >= self._rows:
            self._wake.set()

    @property
    def has_room(self) -> bool:
        """Whether a mail may begin: see :meth:`room`."""
        return self._unwritten < self._most

    async def room(self) -> None:
        """Wait while too many outcomes are not committed: a mail that begins now would be one more of
        which nobody knows if this process dies."""
        await self._room.wait()

    def take(self, chunk_id: int) -> asyncio.Future[bool]:
        """Take a chunk; False when it is not ours to work. The answer may be
        :class:`mailweir.plumbing.database.DatabaseUnavailable`."""
        said: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if chunk_id in self._taking:
            said.set_result(False)  # the broker brought it twice
        else:
            self._taking[chunk_id] = said
            self._wake.set()
        return said

    async def withdraw(self, chunk_id: int, said: asyncio.Future[bool]) -> bool:
        """Who asked to take a chunk was cut short: whether it is ours all the same, since its turn had
        come. Somebody must give its jobs back then."""
        if self._taking.get(chunk_id) is said:
            del self._taking[chunk_id]
            return False
        try:
            return await said
        except Exception:  # the database did not say: its lease runs out if it was taken
            return False

    async def close_chunk(self, chunk_id: int) -> None:
        """Close a chunk whose outcomes were all put; returns when everything is committed."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing[chunk_id] = done
        self._wake.set()
        await done

    async def stop(self) -> None:
        """Write what waits, then end."""
        while self._outcomes or self._hurry:
            self._wake.set()
            await asyncio.sleep(self._delay)
        self._stopped = True
        self._wake.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while not self._stopped:
            await self._wake.wait()
            self._wake.clear()
            if not self._hurry and 0 < len(self._outcomes) < self._rows:
                # company may come; a chunk that waits for its begin or end is not kept waiting
                left = self._first + self._delay - time.monotonic()
                if left > 0:
                    try:
                        async with asyncio.timeout(left):
                            await self._wake.wait()
                    except TimeoutError:
                        pass
                    self._wake.clear()
            while True:
                try:
                    await self._turn()
                except Exception:  # a defect here must not end the only writer
                    log.exception("outcome writer stumbled")
                    await asyncio.sleep(RETRY_FIRST)
                if len(self._outcomes) < self._rows and not self._hurry:
                    break  # the few that came meanwhile wait for company, too
            if self._outcomes:
                self._wake.set()

    async def _turn(self) -> None:
        batch, self._outcomes = self._outcomes[:WRITE_MAX], self._outcomes[WRITE_MAX:]
        first, self._first = self._first, time.monotonic()
        notes, self._notes = self._notes, []
        # a chunk closes with its last outcome, not before
        waiting = {outcome.chunk_id for outcome in self._outcomes}
        closing = [c for c in self._closing if c not in waiting]
        taking = {c: self._taking.pop(c) for c in list(self._taking)[:TAKE_MAX]}
        finished, self._finished = self._finished, defaultdict(int)
        sent_back, self._sent_back = self._sent_back, defaultdict(int)
        for (bucket, state), count in self._ended.items():
            OUTCOMES.labels(bucket, state).inc(count)
        self._ended.clear()
        try:
            lost, _ = await asyncio.gather(
                self._write(batch, closing, taking), self._book(notes, finished, sent_back)
            )
        finally:
            self._unwritten -= len(batch)
            if self._unwritten < self._most:
                self._room.set()
            for said in taking.values():
                if not said.done():
                    said.set_exception(DatabaseUnavailable("the write failed"))
        if batch:
            WRITE.observe(time.monotonic() - first)
        if lost:
            LOST.inc(len(lost))
            log.warning("outcomes of jobs no longer ours", jobs=len(lost))
        written = [o.attempt.id for o in batch if o.attempt is not None and o.job_id not in lost]
        await announce_async(self._wire, ATTEMPT, written)
        if closing:
            await self._forget_marks(closing)
        for chunk_id in closing:
            done = self._closing.pop(chunk_id)
            if not done.done():
                done.set_result(None)

    @property
    def _hurry(self) -> bool:
        return bool(self._closing or self._taking)

    async def _write(
        self,
        batch: Sequence[Outcome],
        closing: Sequence[int],
        taking: Mapping[int, asyncio.Future[bool]] = MappingProxyType({}),
    ) -> set[int]:
        """The ids no longer ours. A database that is away is waited for: outcomes must not get lost
        while their leases hold; a lease that ran out is settled by the reconciler. Who takes a chunk
        is told at once."""
        pause = RETRY_FIRST
        while batch or closing or taking:
            chunks = self._taker(list(taking)) if taking else None
            try:
                turn = await self._in_thread(batch, closing, chunks)
            except DatabaseUnavailable as error:
                _tell(taking, error)
                taking = {}
                if batch or closing:
                    log.error("outcomes wait for the database", error=str(error), rows=len(batch))
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, RETRY_MAX)
            except Exception as error:
                log.exception("refused by the spool", outcomes=len(batch), taking=len(taking))
                _tell(taking, error)
                return await self._one_by_one(batch, closing) if batch or closing else set()
            else:
                for chunk_id, said in taking.items():
                    if not said.done():
                        said.set_result(chunk_id in turn.taken)
                return turn.lost
        return set()

    async def _in_thread(
        self, batch: Sequence[Outcome], closing: Sequence[int], taking: Taking | None
    ) -> Turn:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._spool.turn, batch, closing, taking)

    async def _one_by_one(self, batch: Sequence[Outcome], closing: Sequence[int]) -> set[int]:
        """One bad outcome must not take the others with it."""
        if len(batch) == 1:
            return await self._last_resort(batch[0], closing)
        lost: set[int] = set()
        for outcome in batch:
            lost |= await self._write([outcome], ())
        if closing:
            lost |= await self._write([], closing)
        return lost

    async def _last_resort(self, outcome: Outcome, closing: Sequence[int]) -> set[int]:
        if outcome.state is State.DEAD_LETTER and outcome.attempt is None:
            STUCK.inc()
            return {outcome.job_id}
        dead = Outcome(
            outcome.job_id,
            outcome.chunk_id,
            State.DEAD_LETTER,
            reason=f"outcome could not be written: {outcome.state}",
        )
        return await self._write([dead], closing)

    async def _book(
        self,
        notes: Sequence[PathNote],
        finished: Mapping[str, int],
        sent_back: Mapping[tuple[str, str], int],
    ) -> None:
        """Never fails: outcomes are written beside it."""
        try:
            await self._book_paths(notes)
            if finished or sent_back:
                await self._count(finished, sent_back)
        except Exception:
            log.exception("paths not booked")

    async def _book_paths(self, notes: Sequence[PathNote]) -> None:
        paths: dict[tuple[str, str], list[PathNote]] = defaultdict(list)
        for note in notes:
            paths[note.source, note.provider].append(note)
        await self._limiter.book(
            [
                Booking(
                    source,
                    provider,
                    some[-1].ceiling,
                    tuple((n.event, n.began) for n in some),
                    max(n.hold for n in some),
                )
                for (source, provider), some in paths.items()
            ]
        )

    async def _count(
        self, finished: Mapping[str, int], sent_back: Mapping[tuple[str, str], int]
    ) -> None:
        """What the router's windows follow, by slot of time: jobs finished per queue, and sent back by a
        throttle per queue and lane."""
        slot = int(time.time() // keys.FLEET_SLOT)
        # between two writes lie fewer slots than that, or the key has expired
        old = [slot - back for back in range(SLOTS_KEPT, 2 * SLOTS_KEPT)]
        try:
            commands: list[Command] = []
            for queue, count in finished.items():
                key = keys.FLEET.format(queue=queue)
                commands += (
                    ("HINCRBY", key, slot, count),
                    ("HDEL", key, *old),
                    ("EXPIRE", key, int(keys.FLEET_SLOT * SLOTS_KEPT)),
                )
            for (queue, lane), count in sent_back.items():
                key = keys.SENT_BACK.format(queue=queue, slot=slot)
                commands += (
                    ("HINCRBY", key, lane, count),
                    ("EXPIRE", key, int(keys.FLEET_SLOT * SLOTS_KEPT)),
                )
            await self._wire.run(*commands)
        except RedisError as error:
            log.warning("finished jobs not counted", error=type(error).__name__)

    async def _forget_marks(self, chunk_ids: Sequence[int]) -> None:
        try:
            await self._wire.run(("UNLINK", *(keys.in_data(c) for c in chunk_ids)))
        except RedisError as error:
            log.warning("marks not removed; they expire", error=type(error).__name__)
