"""Puts the rooms together: which objects each process is made of. The only place that knows them all."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import ExitStack

import redis

from console.operate import Operator
from console.pages import Pages
from console.reading import Reader
from console.session import Sessions
from console.threads import Threads
from console.web import Part
from journal.recorder import Recorder
from mailweir.contracts.job import Bucket
from mailweir.contracts.policy import Policy
from mailweir.plumbing import keys
from mailweir.plumbing.apikeys import KeyRing
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database, open_database
from mailweir.plumbing.install import derive, make_once, master_key
from mailweir.plumbing.policies import PolicyWatch
from mailweir.plumbing.publisher import Publisher
from mailweir.plumbing.redis import connect
from mailweir.plumbing.settings import Settings
from mailweir.spool.store import Spool
from producer.doors.http import HttpDeps
from producer.doors.http import routes as submission_routes
from producer.published import PublishedDoor
from producer.reception import open_reception
from producer.templates import Templates
from router.dispatch import Dispatcher, Inputs
from router.fast import FastReader
from router.loop import Loop
from router.policy.compiled import CompiledPolicy
from router.recipients import RecipientLimit
from router.reconciler import Reconciler
from router.snapshots import SnapshotReader
from router.window import Windows
from suppression.guard import Guard
from suppression.listener import SuppressionListener
from suppression.unsubscribe import routes as unsubscribe_routes


def spool_of(settings: Settings, clock: Clock, stack: ExitStack) -> tuple[Database, Spool]:
    """Database and job store, closed with the stack."""
    database = open_database(settings)
    stack.callback(database.close)
    return database, Spool(
        database, idempotency_hours=settings.accept.idempotency_hours, clock=clock
    )


def router_loop(
    settings: Settings, clock: Clock, buckets: Sequence[Bucket], stack: ExitStack
) -> Loop:
    """One router process."""
    database, spool = spool_of(settings, clock, stack)
    client = connect(settings)
    stack.callback(client.close)
    publisher = Publisher(settings)
    stack.callback(publisher.close)
    secret = master_key(settings)
    watch = PolicyWatch(database, client)
    snapshots, fast = SnapshotReader(client), FastReader(client, clock)
    compiled: list[tuple[Policy, CompiledPolicy]] = []

    def inputs() -> Inputs:
        policy = watch.get()
        if not compiled or compiled[0][0] is not policy:
            compiled[:] = [(policy, CompiledPolicy(policy))]
        return Inputs(compiled[0][1], snapshots.get(), fast.get())

    regions = (settings.region,) if settings.region else ()
    queues = keys.bucket_queues(regions)
    router = settings.router
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
        Windows(client, router.window_min, router.window_max),
        inputs,
        clock,
        router,
        queues,
    )


def web_parts(settings: Settings, clock: Clock, stack: ExitStack) -> tuple[list[Part], Database]:
    """What the web process serves."""
    database, spool = spool_of(settings, clock, stack)
    client = connect(settings)
    stack.callback(client.close)
    secret = master_key(settings)
    acceptor, reception = open_reception(settings, clock, database, spool)
    reader = Reader(settings, clock, database)
    stack.callback(reader.close)
    password = make_once(settings.data / "console.password", secrets.token_urlsafe(18))
    door = HttpDeps(settings, clock, reception, Templates(database), spool, KeyRing(database))
    pages = Pages(reader, Operator(database, clock), Sessions(derive(secret, "console"), password))
    return [
        Part([*submission_routes(door)], acceptor.close),
        Part(unsubscribe_routes(client, database, secret, clock)),
        Part(pages.routes()),
    ], database


def ingress_door(settings: Settings, clock: Clock, stack: ExitStack) -> PublishedDoor:
    """What the ingress consumer commits with."""
    database, spool = spool_of(settings, clock, stack)
    acceptor, reception = open_reception(settings, clock, database, spool)
    stack.callback(acceptor.close)
    return PublishedDoor(reception, KeyRing(database), database, clock)


def reputation_process(settings: Settings, clock: Clock, stack: ExitStack) -> Threads:
    """Reputation manager, suppression listener and journal recorder, each in a thread of its own."""
    database, _ = spool_of(settings, clock, stack)
    secret = master_key(settings)

    def client() -> redis.Redis:
        made = connect(settings)
        stack.callback(made.close)
        return made

    suppression = SuppressionListener(client(), database, secret, clock)
    recorder = Recorder(database, clock)
    return Threads({"suppression": suppression.run, "journal": recorder.run})
