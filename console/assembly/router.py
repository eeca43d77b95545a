"""The router process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from console.assembly.base import spool_of
from mailweir.contracts.job import Bucket
from mailweir.contracts.policy import Policy
from mailweir.plumbing import keys
from mailweir.plumbing.bell import Ear
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.install import derive, master_key
from mailweir.plumbing.policies import InForce, PolicyWatch
from mailweir.plumbing.publisher import Publisher
from mailweir.plumbing.redis import connect
from mailweir.plumbing.settings import Settings
from router.dispatch import Dispatcher, Inputs, Policies
from router.fast import FastReader
from router.loop import Loop
from router.mx import MxReader
from router.policy.compiled import CompiledPolicy, in_region
from router.reach import ReachReader
from router.recipients import RecipientLimit
from router.reconciler import Reconciler
from router.snapshots import SnapshotReader
from router.window import Windows
from suppression.guard import Guard


def router_loop(
    settings: Settings, clock: Clock, buckets: Sequence[Bucket], stack: ExitStack
) -> Loop:
    """One router process."""
    database, spool = spool_of(settings, clock, stack)
    if Bucket.TRANSACTIONAL not in buckets:
        database.give_way()
    client = connect(settings)
    stack.callback(client.close)
    publisher = Publisher(settings)
    stack.callback(publisher.close)
    secret = master_key(settings)
    watch = PolicyWatch(database, client)
    snapshots, fast, reach = SnapshotReader(client), FastReader(client, clock), ReachReader(client)
    compiled: list[tuple[InForce, Policies]] = []

    def inputs() -> Inputs:
        found = watch.in_force()
        if not compiled or compiled[0][0] is not found:
            before = compiled[0][1] if compiled else None
            compiled[:] = [(found, compile_all(found, settings.region, before))]
        ready = compiled[0][1]
        unreached = reach.watch(ready.live)
        return Inputs(ready, snapshots.get(), fast.get, unreached, reach.fleets)

    def queues() -> tuple[str, ...]:
        """Every queue jobs may go to now: with a region of our own, those of all the policy's regions."""
        return keys.bucket_queues(in_region(watch.get(), settings.region).regions)

    router = settings.router
    rest: Callable[[bool], None]
    if Bucket.TRANSACTIONAL in buckets:
        ear = Ear(client, rung=router.idle_rung, alone=router.idle)
        stack.callback(ear.close)
        rest = ear.rest
    else:

        def rest(due: bool) -> None:
            time.sleep(router.idle_bulk)

    return Loop(
        buckets,
        spool,
        Dispatcher(
            spool,
            publisher,
            Guard(client, database, secret, clock),
            RecipientLimit(client, clock, derive(secret, "recipients"), spool.recipient_attempts),
            clock,
            router,
            MxReader(client, settings.geo.database is not None),
        ),
        Reconciler(
            spool,
            publisher,
            client,
            watch.get,
            clock,
            router,
            queues,
            settings.worker.max_crashes,
        ),
        Windows(client, router),
        inputs,
        clock,
        router,
        queues,
        rest,
    )


def compile_all(found: InForce, own: str | None, before: Policies | None = None) -> Policies:
    """The policies in force, made ready for deciding; one that stays in force keeps its shares in turn.

    ``own``: the region of this installation's processes, see ``in_region``."""
    ready = {p.policy.version: p for p in _all(before)}

    def compiled(policy: Policy) -> CompiledPolicy:
        known = ready.get(policy.version)
        if known is not None:
            return known
        return CompiledPolicy(in_region(policy, own))

    canary = found.canary
    return Policies(
        compiled(found.live),
        None if canary is None else compiled(canary),
        None if found.shadow is None else compiled(found.shadow),
        lambda job_id: found.decides(job_id) is canary,
    )


def _all(policies: Policies | None) -> list[CompiledPolicy]:
    if policies is None:
        return []
    return [p for p in (policies.live, policies.canary, policies.shadow) if p is not None]
