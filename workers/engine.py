"""The story of one chunk, from its message to the last outcome: :meth:`Engine.work`.

take -> read (a thread) -> destinations by domain -> per site: the gate, the conversation ->
outcomes -> acknowledge. Jobs end one by one; whatever goes wrong with one is its own affair.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import structlog
from prometheus_client import Counter

from mailweir.contracts.lifecycle import State
from mailweir.contracts.policy import Policy, Provider, Source
from mailweir.contracts.route import Chunk
from mailweir.plumbing.clock import Clock, since_boot
from mailweir.plumbing.database import DatabaseUnavailable
from mailweir.plumbing.policies import NoPolicy
from mailweir.plumbing.settings import Settings
from mailweir.spool.store import Outcome, Spool, Work
from workers.archive import Archive
from workers.campaigns import Campaigns, name_of
from workers.connections import Connections
from workers.delivery.destinations import Destinations, DnsTrouble, NoMail
from workers.delivery.http_api import KINDS as HTTP_KINDS
from workers.delivery.owner import Owner
from workers.delivery.transport import MAILS_PER_OPENING
from workers.delivery.types import Destination, Envelope, Result
from workers.engine_asks import Asks
from workers.engine_compose import Composer, NotReady
from workers.engine_gate import SHORT_WAIT, Gate
from workers.engine_purse import Purse
from workers.engine_run import WAIT_AGAIN, Ready, Run
from workers.engine_talk import Talk
from workers.engine_views import Views
from workers.held_bytes import HeldBytes
from workers.ledger import uncertain_before
from workers.patience import Patience
from workers.policy.outcome import CUT
from workers.policy.tls import tls_mode
from workers.prewarm import Prewarm
from workers.writer import Writer

log = structlog.get_logger(__name__)

READ_AGAIN = 2.0
"""Policy seconds until a chunk that could not be read is routed again: what failed is not mended at once."""
CHUNKS = Counter("mailweir_chunks_total", "Chunks, by what became of them.", ["what"])


class Deliver(Protocol):
    """The transport as the engine uses it."""

    async def deliver(
        self,
        source: Source,
        destination: Destination,
        envelopes: Sequence[Envelope],
        *,
        provider: Provider,
        tls: str,
        owner: Owner,
        max_connections: int,
        patience: Patience | None = None,
    ) -> None:
        """See :class:`workers.delivery.transport.Transport`."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the database thread brings: the jobs to send and their bytes."""

    works: list[Work]
    policy: Policy
    envelopes: dict[int, Envelope]
    not_ready: dict[int, NotReady]
    broken: dict[int, Exception]
    resent: frozenset[int]


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of (``workers.engine_build`` makes the real ones)."""

    settings: Settings
    clock: Clock
    spool: Spool
    views: Views
    gate: Gate
    writer: Writer
    transport: Deliver
    destinations: Destinations
    composer: Composer
    connections: Connections
    archive: Archive
    campaigns: Campaigns
    prewarm: Prewarm
    executor: Executor
    reachable: Callable[[Source], bool]


class Engine:
    """Works chunks, any number at once. Belongs to one event loop."""

    def __init__(self, parts: Parts, name: str) -> None:
        self.parts = parts
        self.name = name
        self.stopping = False
        self.live: dict[int, Run] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._asks = Asks(name)
        self._held = HeldBytes(parts.settings.worker.held_bytes)

    async def work(self, chunk: Chunk) -> None:
        """Give every job of the chunk its outcome, once there is room for its mail. Raises nothing but a
        cancellation that came before it was taken, or after every job was settled."""
        async with self._held.room(chunk.size):
            await self._work(chunk)

    async def _work(self, chunk: Chunk) -> None:
        leased = since_boot() + self.parts.settings.worker.lease
        taking = self.parts.writer.take(chunk.id)
        try:
            # shielded: whether it was taken must be known even where nobody works it any more
            taken = await asyncio.shield(taking)
        except asyncio.CancelledError:
            if await self.parts.writer.withdraw(chunk.id, taking):
                await self._unread(chunk, "the worker stopped before it read it")
            raise
        except DatabaseUnavailable as error:
            # The message is acknowledged, the reconciler finds the chunk again.
            log.warning("chunk not taken", chunk=chunk.id, error=type(error).__name__)
            CHUNKS.labels("not_taken").inc()
            return
        try:
            loaded = await self._load(chunk) if taken else None
        except asyncio.CancelledError:
            await self._unread(chunk, "the worker stopped before it read it")
            raise
        except (DatabaseUnavailable, NoPolicy) as error:
            log.warning("chunk not readable", chunk=chunk.id, error=str(error))
            why = f"the worker could not read it: {type(error).__name__}"
            await self._unread(chunk, why, wait=READ_AGAIN)
            return
        if loaded is None or not loaded.works:
            CHUNKS.labels("empty").inc()
            return
        run = self._run(chunk, loaded, leased)
        self.live[chunk.id] = run
        try:
            if not await self._turned_back(run):
                await self._send(run, loaded)
        except asyncio.CancelledError:
            self._cut(run)
            raise
        except Exception as error:
            log.exception("chunk failed", chunk=chunk.id)
            self._cut(run, error)
        finally:
            for job_id in list(run.pending):
                run.give_back(job_id, "the worker stopped before this job")
            ending = asyncio.create_task(self._end(run, len(loaded.works)))
            self._ending.add(ending)  # it goes on whoever is cancelled meanwhile
            ending.add_done_callback(self._ending.discard)
            await asyncio.shield(ending)
        if run.copies:
            await self.parts.archive.send(run, run.copies)

    def stop(self) -> None:
        """Start no more jobs; conversations go on."""
        self.stopping = True
        for run in self.live.values():
            run.stopped = True

    # --- steps ------------------------------------------------------------------------------
    async def _unread(self, chunk: Chunk, why: str, wait: float = 0.0) -> None:
        """A chunk that was taken and could not be read goes back whole, for ``wait`` policy seconds."""
        log.warning("chunk not read", chunk=chunk.id, why=why)
        CHUNKS.labels("not_read").inc()
        due = self.parts.clock.now() + wait
        for job_id in chunk.jobs:
            back = Outcome(job_id, chunk.id, State.DUE, due, why)
            self.parts.writer.put(back, chunk.bucket, chunk.queue)
        await asyncio.shield(self.parts.writer.close_chunk(chunk.id))

    async def _end(self, run: Run, jobs: int) -> None:
        """Every job has its outcome: the chunk is closed when they are committed."""
        chunk_id = run.chunk.id
        await self.parts.writer.close_chunk(chunk_id)
        await self.parts.gate.leave(chunk_id, run.purses.values())
        del self.live[chunk_id]
        CHUNKS.labels("done").inc()
        seconds = round(time.monotonic() - run.started, 3)
        log.debug("chunk done", chunk=chunk_id, jobs=jobs, seconds=seconds)

    async def _load(self, chunk: Chunk) -> Loaded:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.parts.executor, self._load_blocking, chunk)

    def _load_blocking(self, chunk: Chunk) -> Loaded:
        """Read jobs and contents, compose, sign: one visit to a thread."""
        parts = self.parts
        policy = parts.views.policy()
        works = parts.spool.taken(chunk)
        contents = parts.spool.contents(list({w.content_id for w in works})) if works else {}
        composing = parts.composer.chunk(contents, policy)
        envelopes: dict[int, Envelope] = {}
        not_ready: dict[int, NotReady] = {}
        broken: dict[int, Exception] = {}
        for work in works:
            try:
                envelopes[work.job.id] = composing.envelope(work)
            except NotReady as why:
                not_ready[work.job.id] = why
            except Exception as error:  # bytes no code can send: this job's end, nobody else's
                broken[work.job.id] = error
        again = [w.job.id for w in works if w.job.attempts]
        resent = uncertain_before(parts.spool.database, again) if again else frozenset()
        return Loaded(works, policy, envelopes, not_ready, broken, resent)

    def _run(self, chunk: Chunk, loaded: Loaded, leased: float) -> Run:
        source = loaded.policy.sources.get(chunk.source) or Source(chunk.source)
        return Run(
            chunk,
            source,
            loaded.policy,
            self.parts.views.snapshot,
            self.parts.writer,
            self.parts.clock,
            random.random(),
            self.parts.settings.smtp.reply_kept,
            {work.job.id: work for work in loaded.works},
            self.parts.campaigns,
            Patience(self.parts.settings.worker.chunk_connection_wait),
            Patience(self.parts.settings.worker.chunk_token_wait),
            loaded.resent,
            ends=time.monotonic() + self.parts.settings.worker.chunk_seconds,
            leased=leased,
            stopped=self.stopping,
        )

    async def _turned_back(self, run: Run) -> bool:
        """A chunk this worker cannot carry goes back without an attempt."""
        if run.chunk.source not in run.policy.sources:
            why = f"source {run.chunk.source} is no longer in the policy"
        elif not self.parts.reachable(run.source):
            why = f"worker {self.name} cannot reach source {run.chunk.source}"
        else:
            return False
        for job_id in list(run.pending):
            run.give_back(job_id, why)
        CHUNKS.labels("turned_back").inc()
        return True

    async def _send(self, run: Run, loaded: Loaded) -> None:
        for job_id, error in loaded.broken.items():
            run.bury(job_id, error)
        for job_id, why in loaded.not_ready.items():
            run.hold(job_id, WAIT_AGAIN, str(why))
        self._sandbox(run)
        domains: dict[str, list[Work]] = defaultdict(list)
        for work in list(run.pending.values()):
            domains[work.job.domain].append(work)
        found = await self._resolve(run.source, domains)
        # one conversation's worth: same site, same encryption, same manners
        sites: dict[tuple[object, ...], tuple[Destination, list[Ready]]] = {}
        for destination, works in zip(found, domains.values(), strict=True):
            if isinstance(destination, BaseException):
                self._no_destination(run, works, destination)
                continue
            provider = self.parts.views.provider(run.policy, destination.provider)
            manners = (
                destination.site,
                destination.demands,
                provider.connections,
                provider.per_connection,
                provider.idle,
                provider.ipv6,
            )
            for work in works:
                tls = tls_mode(run.policy, run.source, provider, work.orders)
                site = sites.setdefault((tls, *manners), (destination, []))
                site[1].append(self._ready(run, work, provider, loaded.envelopes[work.job.id]))
        async with asyncio.TaskGroup() as group:
            for (mode, *_), (place, some) in sites.items():
                group.create_task(self._deliver(run, place, str(mode), some))

    async def _resolve(
        self, source: Source, domains: Collection[str]
    ) -> list[Destination | BaseException]:
        """Each domain's destination or what went wrong; a task only where somebody must be asked."""
        places = self.parts.destinations
        known = [places.known(domain, source) for domain in domains]
        asked = [d for d, found in zip(domains, known, strict=True) if found is None]
        told = iter(
            await asyncio.gather(
                *(places.resolve(domain, source) for domain in asked), return_exceptions=True
            )
        )
        return [next(told) if found is None else found for found in known]

    def _ready(self, run: Run, work: Work, provider: Provider, envelope: Envelope) -> Ready:
        job = work.job
        slowed = None
        if self.parts.campaigns.slowed and job.meta.campaign:
            name = name_of(job.tenant, job.meta.campaign)
            if (rate := self.parts.campaigns.slowed.get(name)) is not None:
                slowed = (name, rate)
        # orders of one batch are one object
        alike = (provider.name, work.pool, job.bucket, job.tenant, id(work.orders), slowed)
        purse = run.alike.get(alike)
        if purse is None:
            ask = self._asks.get(run, work, provider, slowed)
            back = work.orders.back
            purse = run.purses.get((ask, back)) or Purse(
                ask, run.chunk.id, run.token_patience, back
            )
            run.alike[alike] = run.purses[ask, back] = purse
        purse.jobs[job.id] = job
        ready = Ready(work, envelope, provider, purse)
        run.ready[job.id] = ready
        return ready

    async def _deliver(
        self, run: Run, destination: Destination, tls: str, some: list[Ready]
    ) -> None:
        """One site's mails over its connections."""
        provider, source = some[0].provider, run.source
        cap = source.connections or provider.connections
        if source.kind in HTTP_KINDS:
            await self._converse(run, destination, tls, some, cap)
            return
        want = min(cap, -(-len(some) // MAILS_PER_OPENING))
        self.parts.prewarm.note(source.name, some[0].work.job.domain, len(some))
        async with self.parts.connections.using(
            source.name, destination.site, want, cap, SHORT_WAIT, run.starts
        ) as allowed:
            if allowed:
                await self._converse(run, destination, tls, some, allowed)
                return
        run.crowded([ready.envelope for ready in some])

    async def _converse(
        self, run: Run, destination: Destination, tls: str, some: list[Ready], connections: int
    ) -> None:
        talk = Talk(self.parts, run, destination.site, some)
        some = await talk.admitted()
        if not some:
            return
        try:
            await self.parts.transport.deliver(
                run.source,
                destination,
                [ready.envelope for ready in some],
                provider=some[0].provider,
                tls=tls,
                owner=talk,
                max_connections=connections,
                patience=run.connection_patience,
            )
        except Exception as error:
            log.exception("transport failed", chunk=run.chunk.id, site=destination.site)
            self._cut(run, error, {ready.work.job.id for ready in some})

    def _sandbox(self, run: Run) -> None:
        """Test mails end here: composed and signed like any other, never sent (P7)."""
        for work in list(run.pending.values()):
            if work.job.meta.sandbox:
                reply = "250 2.0.0 sandbox: not sent"
                run.settle(Result(work.job.id, "dot", 250, reply, "sandbox", 0.0))

    def _no_destination(self, run: Run, works: list[Work], error: BaseException) -> None:
        for work in works:
            match error:
                case NoMail():
                    # the seed's wording first, the standard code behind it (S34)
                    text = f"{error.reply}; {error.detail}"
                    run.settle(Result(work.job.id, "dns", 555, text, "", 0.0, error="dns"))
                case DnsTrouble():
                    run.settle(Result(work.job.id, "dns", None, str(error), "", 0.0, error="dns"))
                case _:
                    run.bury(work.job.id, error)

    def _cut(
        self, run: Run, error: BaseException | None = None, only: set[int] | None = None
    ) -> None:
        """The conversation was cut short by us: a mail past the gate may be out (N41)."""
        run.stopped = True
        for job_id in list(run.pending):
            if only is not None and job_id not in only:
                continue
            if job_id in run.began:
                text = f"cut short by the worker: {type(error).__name__ if error else 'stopped'}"
                run.settle(Result(job_id, "dot", None, text, "", 0.0, dot_sent=True, error=CUT))
            elif error is not None:
                run.give_back(job_id, f"the worker failed: {type(error).__name__}")
