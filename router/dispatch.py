"""The story of one batch: claim, ask, decide, settle, publish."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import prometheus_client
import structlog
from redis.exceptions import RedisError

from mailweir.contracts.ids import format_id, new_ids
from mailweir.contracts.job import Bucket, Job
from mailweir.contracts.lifecycle import State
from mailweir.contracts.route import Chunk, Decision, Held, Orders, Refused, Routed
from mailweir.contracts.snapshot import FastState, Snapshot
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.publisher import Publisher, PublishFailed
from mailweir.plumbing.settings import RouterSettings
from mailweir.spool.store import DecisionRow, Dispatch, Move, Pick, Spool
from router.mx import MxReader
from router.policy.chunks import came_back, parts
from router.policy.compiled import CompiledPolicy
from router.policy.context import Context, RecipientRoom, RouterState
from router.policy.decide import route_many
from router.policy.differences import way
from router.policy.reach import Unreached
from router.policy.record import record
from router.recipients import MOST_HELD, RecipientLimit, Want
from suppression.guard import Ask, Guard

log = structlog.get_logger(__name__)

SHADOW = prometheus_client.Counter(
    "mailweir_shadow_decisions", "Decisions of a shadow policy beside the live one.", ["outcome"]
)

RETRY_LIMIT = 5.0
"""Policy seconds a job waits when the recipient limit cannot be asked (Redis is away)."""


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies in force, compiled (N26): live, a canary for a share of the jobs, a shadow that is only
    evaluated. ``pick`` names the policy that decides a job."""

    live: CompiledPolicy
    canary: CompiledPolicy | None = None
    shadow: CompiledPolicy | None = None
    is_canary: Callable[[int], bool] = field(default=lambda _: False)

    def pick(self, job_id: int) -> CompiledPolicy:
        """Always the same policy for a job while both are in force."""
        if self.canary is not None and self.is_canary(job_id):
            return self.canary
        return self.live


@dataclass(slots=True)
class Inputs:
    """What the decisions of a batch are made from."""

    policies: Policies
    snapshot: Snapshot
    fast: Callable[[], FastState]  # many reads: only where there is something to decide
    unreached: Unreached = field(default_factory=dict)
    fleets: frozenset[frozenset[str]] = frozenset()  # queues some live worker serves together


@dataclass(slots=True)
class Tally:
    """What became of a batch."""

    claimed: int = 0
    dispatched: int = 0
    held: int = 0
    ended: int = 0
    by_queue: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    wanted: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # room or not
    by_lane: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # dispatched


class Dispatcher:
    """Carries out what the policy decides."""

    def __init__(
        self,
        spool: Spool,
        publisher: Publisher,
        guard: Guard,
        recipients: RecipientLimit,
        clock: Clock,
        settings: RouterSettings,
        mx: MxReader,
    ) -> None:
        self._mx = mx
        self._spool = spool
        self._publisher = publisher
        self._guard = guard
        self._recipients = recipients
        self._clock = clock
        self._settings = settings
        self._states: dict[CompiledPolicy, RouterState] = {}  # share counters, per policy

    def batch(
        self,
        bucket: Bucket,
        picks: Sequence[Pick],
        inputs: Inputs,
        room: Callable[[str], int],
    ) -> Tally:
        """Claim and settle one batch. ``room(queue)`` says how many jobs a queue may still take.

        Raises what the database raises; a broker that refuses leaves the chunks to the reconciler.
        """
        tally = Tally()
        with self._spool.claim(picks, self._clock.now()) as batch:
            if not batch.jobs:
                return tally
            tally.claimed = len(batch.jobs)
            decided = self._decide(batch.jobs, inputs, room, tally)
            dispatches, moves, rows = self._carry_out(bucket, decided, room, tally)
            made = batch.settle(dispatches, moves, rows, _priorities(decided))
        tally.dispatched = sum(len(chunk.jobs) for chunk in made)
        try:
            self._publisher.publish(made)
        except PublishFailed as error:
            log.warning("chunks not published", chunks=len(made), why=str(error))
            if not error.uncertain:
                self._spool.redispatch([chunk.id for chunk in made], self._clock.now())
        return tally

    def _decide(
        self, jobs: Sequence[Job], inputs: Inputs, room: Callable[[str], int], tally: Tally
    ) -> list[tuple[Job, Decision, Context]]:
        now = self._clock.now()
        reasons = self._guard.check(
            [
                Ask(job.recipient, job.tenant, job.bucket, job.mail_from, job.recipient_key)
                for job in jobs
            ]
        )
        suppressed = {
            job.id: reason for job, reason in zip(jobs, reasons, strict=True) if reason is not None
        }
        policies, fast = inputs.policies, inputs.fast()
        by_policy: dict[CompiledPolicy, list[Job]] = defaultdict(list)
        for job in jobs:
            by_policy[policies.pick(job.id)].append(job)
        decided: list[tuple[Job, Decision, Context]] = []
        asks = any(policy.rules.asks_zones for policy in by_policy)
        places = self._mx.places((job.domain for job in jobs), asks)
        for policy, members in by_policy.items():
            context = Context(
                policy=policy,
                snapshot=inputs.snapshot,
                fast=fast,
                now=now,
                suppressed=suppressed,
                providers=places.providers,
                zones=places.zones,
                unplaced=places.unplaced,
                recipients=self._rooms(members, suppressed, policy, now),
                unreached=inputs.unreached,
                paused=inputs.snapshot.paused,
            )
            before = self._states.get(policy, RouterState())
            decisions, after = route_many(members, context, before)
            fitting = _fitting(members, decisions, room, tally.wanted)
            if len(fitting) < len(members):
                # a job that finds no room must not have had its turn: shares count what goes
                members = fitting
                decisions, after = route_many(members, context, before)
            self._states[policy] = after
            decided += [(job, made, context) for job, made in zip(members, decisions, strict=True)]
        self._forget(policies)
        if policies.shadow is not None:
            self._shadow(policies.shadow, decided)
        return decided

    def _forget(self, policies: Policies) -> None:
        """Drop the share counters of policies that are no longer in force."""
        current = (policies.live, policies.canary, policies.shadow)
        for policy in [known for known in self._states if known not in current]:
            del self._states[policy]

    def _shadow(
        self, shadow: CompiledPolicy, decided: Sequence[tuple[Job, Decision, Context]]
    ) -> None:
        """Evaluate the shadow policy on the same jobs; only differences are logged, nothing is done."""
        contexts = {id(context): context for _, _, context in decided}
        for context in contexts.values():
            members = [(job, made) for job, made, seen in decided if seen is context]
            mirrored = msgspec.structs.replace(context, policy=shadow)
            before = self._states.get(shadow, RouterState())
            decisions, self._states[shadow] = route_many(
                [job for job, _ in members], mirrored, before
            )
            for (job, made), other in zip(members, decisions, strict=True):
                live, would = way(made), way(other)
                SHADOW.labels("same" if live == would else "different").inc()
                if live != would:
                    log.info(
                        "shadow policy differs",
                        job=format_id(job.id),
                        bucket=job.bucket,
                        live=live,
                        shadow=would,
                    )

    def _rooms(
        self,
        jobs: Iterable[Job],
        suppressed: Mapping[int, str],
        policy: CompiledPolicy,
        now: float,
    ) -> dict[int, RecipientRoom]:
        """Jobs whose recipient is over its limit (S21), with the time it has room."""
        asking: list[Want] = []
        for job in jobs:
            limit = policy.policy.bucket(job.bucket).recipient_limit
            if limit is not None and job.id not in suppressed:
                asking.append(Want(job.id, job.recipient_key, limit))
        try:
            places = self._recipients.reserve(asking)
        except RedisError:
            # Nothing that is counted per hour may go while its count cannot be asked.
            return {want.job_id: RecipientRoom(now + RETRY_LIMIT, 0) for want in asking}
        return {
            want.job_id: RecipientRoom(
                now + (want.limit.per if place.refused else place.wait),
                MOST_HELD if place.refused else 0,
            )
            for want, place in zip(asking, places, strict=True)
            if place.refused or place.wait > 0
        }

    def _carry_out(
        self,
        bucket: Bucket,
        decided: Sequence[tuple[Job, Decision, Context]],
        room: Callable[[str], int],
        tally: Tally,
    ) -> tuple[list[Dispatch], list[Move], list[DecisionRow]]:
        groups: dict[tuple[str, str], list[tuple[Job, Routed]]] = defaultdict(list)
        moves: list[Move] = []
        rows: list[DecisionRow] = []
        ids = iter(new_ids(2 * len(decided)))
        for job, decision, context in decided:
            if isinstance(decision, Routed):
                if tally.by_queue[decision.queue] >= room(decision.queue):
                    continue  # stays as it was; the next batch has room again
                tally.by_queue[decision.queue] += 1
                tally.by_lane[job.lane] += 1
                groups[decision.queue, decision.source].append((job, decision))
            elif isinstance(decision, Held):
                tally.held += 1
                moves.append(Move(job.id, State.HELD, decision.until, decision.reason))
                if job.reason == decision.reason:
                    continue  # said before: a job that waits for an hour needs one record, not many
            else:
                tally.ended += 1
                moves.append(_ending(job, decision))
            rows.append(_row(next(ids), job, decision, context))
        most = (
            self._settings.chunk_transactional
            if bucket is Bucket.TRANSACTIONAL
            else self._settings.chunk
        )
        dispatches = [
            _dispatch(next(ids), bucket, queue, source, part)
            for (queue, source), members in groups.items()
            for part in parts(members, most, self._settings.chunk_bytes)
        ]
        # a queue is first in, first out: what is urgent is published first
        urgency = {job.id: routed.orders.priority or job.priority for job, routed in _all(groups)}
        dispatches.sort(key=lambda d: min(urgency[i] for i in d.chunk.jobs))
        return dispatches, moves, rows


def _fitting(
    jobs: Sequence[Job],
    decisions: Sequence[Decision],
    room: Callable[[str], int],
    wanted: dict[str, int],
) -> list[Job]:
    """The jobs whose queue has room for them; ``wanted`` counts all, by queue."""
    out = []
    for job, decision in zip(jobs, decisions, strict=True):
        if isinstance(decision, Routed):
            wanted[decision.queue] += 1
            if wanted[decision.queue] > room(decision.queue):
                continue
        out.append(job)
    return out


def _all(groups: Mapping[Any, list[tuple[Job, Routed]]]) -> Iterable[tuple[Job, Routed]]:
    return (member for members in groups.values() for member in members)


def _priorities(decided: Sequence[tuple[Job, Decision, Context]]) -> dict[int, int]:
    """Jobs whose rule sets a priority: they keep it when they wait or come back."""
    out = {}
    for job, decision, context in decided:
        rule = decision.orders.rule if isinstance(decision, Routed) else decision.rule
        priority = context.policy.priorities.get(rule)
        if priority is not None:
            out[job.id] = priority
    return out


def _dispatch(
    chunk_id: int, bucket: Bucket, queue: str, source: str, part: list[tuple[Job, Routed]]
) -> Dispatch:
    pools: dict[int, str] = {}
    orders: dict[int, Orders] = {}
    size = 0
    waited: dict[int, Orders] = {}  # by identity: a batch shares its orders' objects
    for job, routed in part:
        pools[job.id] = routed.pool
        given = routed.orders
        if came_back(job):
            given = waited.get(id(given)) or waited.setdefault(
                id(given), msgspec.structs.replace(given, back=True)
            )
        orders[job.id] = given
        size += job.size
    chunk = Chunk(chunk_id, bucket, queue, source, tuple(pools), size)
    return Dispatch(chunk, pools, orders)


def _ending(job: Job, decision: Refused) -> Move:
    state = State.EXPIRED if decision.reason == "expired" else State.REFUSED
    text = f"{decision.reason}: {decision.detail}" if decision.detail else decision.reason
    return Move(job.id, state, None, text)


def _row(row_id: int, job: Job, decision: Decision, context: Context) -> DecisionRow:
    routed = decision if isinstance(decision, Routed) else None
    if isinstance(decision, Routed):
        rule, reason, outcome = decision.orders.rule, "; ".join(decision.reasons), "routed"
    else:
        rule, reason = decision.rule, decision.reason
        outcome = "held" if isinstance(decision, Held) else "refused"
    return DecisionRow(
        id=row_id,
        job_id=job.id,
        at=context.now,
        snapshot=f"{context.snapshot.version}.{context.fast.version}",
        policy_version=context.policy.policy.version,
        outcome=outcome,
        pool=routed.pool if routed else None,
        source=routed.source if routed else None,
        queue=routed.queue if routed else None,
        rule=rule,
        reason=reason,
        body=msgspec.json.encode(record(decision, context, job)).decode(),
    )
