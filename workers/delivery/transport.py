"""The seam workers send through, SMTP and HTTP APIs alike: envelopes in, one result each out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from mailweir.contracts.policy import Provider, Source
from mailweir.plumbing.secrets import Secrets
from mailweir.plumbing.settings import Settings
from workers.delivery.assignment import Assignment, Feed
from workers.delivery.connection import ConnectFailed, Connection, Dial, dial
from workers.delivery.http_api import KINDS, HttpApi
from workers.delivery.owner import Owner, PlainOwner
from workers.delivery.pool import OnChange, Pool
from workers.delivery.transaction import Broken, Mailer
from workers.delivery.types import Destination, Envelope, Hop, TlsMode
from workers.patience import Patience

MAILS_PER_OPENING = 4  # a connection is opened when it has at least so many mails to carry
TRIES = 3  # times an envelope may be begun again, beyond once per host


@cache
def machine_name() -> str:
    """This machine's FQDN: the EHLO name where neither source nor settings have one."""
    return socket.getfqdn()


class _LaneEnds(Exception):
    """No connection for this lane; what is left of the work is another lane's, or has its end."""


class Transport:
    """Pooled, pipelined SMTP for all sources of a process. Belongs to one event loop.

    ``on_connections(source, site, open)`` is told whenever the number of open connections of a source
    to a site changes, idle ones included: whoever counts connections across processes counts these.
    ``allowed(source, site)`` says how many may be open now, within the source's or provider's number;
    a conversation under way keeps one.
    """

    def __init__(
        self,
        settings: Settings,
        secrets: Secrets,
        *,
        on_connections: OnChange | None = None,
        allowed: Callable[[str, str], int] | None = None,
    ) -> None:
        self._allowed = allowed
        self._settings = settings.smtp
        self._secrets = secrets
        self._pool = Pool(on_connections)
        self._http = HttpApi(settings.smtp, secrets)

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
        """Send the envelopes, over at most ``max_connections`` connections at once (and never more open
        to the site than the source's or provider's number).

        The owner is asked before each and told of each end. Nothing a remote does is raised; what the
        owner raises is. Those for whom no connection came free within ``patience`` are handed back to it
        as ``crowded``.
        """
        if not envelopes:
            return
        if source.kind in KINDS:
            await self._http.deliver(
                source,
                envelopes,
                owner=owner,
                max_connections=min(max_connections, source.connections or provider.connections),
            )
            return
        work = Assignment(
            source,
            destination,
            envelopes,
            provider,
            TlsMode(tls),
            owner,
            self._settings.conversation,
            patience,
        )
        try:
            first = await self._connect(work)
        except _LaneEnds:
            return
        if first is None:
            work.settle_all()
            return
        try:
            async with asyncio.TaskGroup() as group:

                def more() -> None:
                    for _ in range(self._wanted(work, first[0], max_connections)):
                        work.lanes += 1
                        group.create_task(self._lane(work, None))

                work.more = more
                work.lanes = 1
                more()
                await self._lane(work, first)
        finally:
            work.more = None  # it holds the work: the mails would stay until cycles are collected

    def _wanted(self, work: Assignment, key: Dial, most: int) -> int:
        """Further connections worth using now: idle ones, or new ones with enough mails to carry. Where all
        are at work for others there is none; it is asked again as mails end."""
        limit, left = self._limit(work), len(work.queue) - 1
        idle, new = self._pool.free(work.place, limit, key)
        if not (idle or new) or self._pool.call(work.place):
            return 0  # none, or others have waited for them
        worth = left // MAILS_PER_OPENING - work.lanes + 1
        return min(max(min(idle, left), min(idle + new, worth)), min(most, limit) - work.lanes)

    async def prewarm(
        self, source: Source, destination: Destination, *, provider: Provider, tls: str, count: int
    ) -> int:
        """Open up to ``count`` idle connections ahead of traffic; returns how many are there."""
        nobody, at_once = PlainOwner(lambda _: None), Patience(0.0)
        work = Assignment(source, destination, (), provider, TlsMode(tls), nobody, False, at_once)
        opened: list[tuple[Dial, Connection]] = []
        try:
            while len(opened) < min(count, self._limit(work)):
                found = await self._connect(work)
                if found is None:
                    break
                opened.append(found)
        except _LaneEnds:
            pass  # mails took the places meanwhile
        finally:
            for key, connection in opened:
                self._pool.put(work.place, key, connection, provider.idle)
        return len(opened)

    def open_connections(self) -> dict[tuple[str, str], int]:
        """(source, site) -> connections held now, idle ones included."""
        return self._pool.held()

    def trim(self, source: str, site: str, keep: int) -> None:
        """Close idle connections of a source to a site until at most ``keep`` are open; where fewer may
        be, who waits for one is let in."""
        self._pool.trim((source, site), keep)

    async def close(self) -> None:
        """QUIT and close every idle connection."""
        await self._pool.close()
        await self._http.close()

    # --- lanes ------------------------------------------------------------------------------
    async def _lane(self, work: Assignment, opened: tuple[Dial, Connection] | None) -> None:
        """Envelopes over one connection after another until none is left."""
        try:
            await self._carry(work, opened)
        finally:
            work.lanes -= 1

    async def _carry(self, work: Assignment, opened: tuple[Dial, Connection] | None) -> None:
        while True:
            if opened is None:
                if not work.queue:
                    return
                try:
                    opened = await self._connect(work)
                except _LaneEnds:
                    return
                if opened is None:
                    work.settle_all()
                    return
            key, connection = opened
            opened = None
            budget = work.provider.per_connection - connection.mails
            hop = connection.dial.hop
            mailer = Mailer(connection, self._settings, Feed(work, hop), budget)
            broken = None
            try:
                broken = await mailer.run()
            finally:
                room = self._pool.open(*work.place) <= self._limit(work)
                if broken is None and connection.mails < work.provider.per_connection and room:
                    self._pool.put(work.place, key, connection, work.provider.idle)
                else:
                    self._pool.discard(work.place, connection)
            if broken is not None:
                self._again(work, connection, broken)

    def _again(self, work: Assignment, connection: Connection, broken: Broken) -> None:
        """A session broke before the dot of this envelope: another connection, another host, or settled.

        Only a connection-layer end moves it (S35): the remote hung up or said 421. A silence or a
        reply we could not read settles it, deferred with its stage; but the mail before it where that
        one's dot was never answered, and this one begins anew.
        """
        envelope = broken.envelope
        reply = broken.lost.reply
        moves = reply.code in (421, 221) if reply else broken.lost.kind in ("closed", "reset")
        moves = moves or broken.behind
        tries = work.begun[envelope.job_id] = work.begun.get(envelope.job_id, 0) + 1
        if moves and connection.mails <= 1:
            # a host that ended its first transaction is left; a later one may have met a limit
            work.dead[connection.dial.hop] = broken
        if moves and work.alive() and tries < TRIES + len(work.hops):
            work.again(envelope)
        else:
            work.settle(envelope, broken, connection.name)

    async def _connect(self, work: Assignment) -> tuple[Dial, Connection] | None:
        """A connection to the best host that is not dead: an idle one or a new one."""
        held = False  # a place to dial in: kept from host to host, or others would come between
        try:
            for hop in work.hops:
                if hop in work.dead or work.login_failed is not None:
                    continue
                key = self._dial_for(work, hop)
                kept = self._pool.take(work.place, key) if held else await self._enter(work, key)
                if kept is not None:
                    return key, kept
                held = True
                try:
                    await self._may_dial(work)
                    opened = await self._dial(key)
                except ConnectFailed as failed:
                    work.dead[hop] = failed
                    if failed.stage == "auth":
                        work.login_failed = failed  # the same login fails at every host
                else:
                    held = False  # it is the connection's
                    return key, opened
            return None
        finally:
            if held:
                self._pool.leave(work.place)

    async def _enter(self, work: Assignment, key: Dial) -> Connection | None:
        """A place for this work: of the idle connection it comes with, or to dial. Where the work's patience
        has an end, the last lane waits as long as that, further ones not at all."""
        if work.patience is None:
            return await self._wait_for_place(work, key)
        if work.lanes > 1:
            try:
                async with asyncio.timeout(0):
                    return await self._wait_for_place(work, key)
            except TimeoutError:
                # where the others ended in the same turn this is the last lane, and their mail its own
                if work.lanes > 1 or not work.queue:
                    raise _LaneEnds from None
        try:
            with work.patience.waiting():
                async with asyncio.timeout(work.patience.left):
                    return await self._wait_for_place(work, key)
        except TimeoutError:
            work.owner.crowded(list(work.queue))
            work.queue.clear()
            raise _LaneEnds from None

    async def _wait_for_place(self, work: Assignment, key: Dial) -> Connection | None:
        return await self._pool.enter(work.place, lambda: self._limit(work), key)

    @staticmethod
    async def _may_dial(work: Assignment) -> None:
        """Raises :class:`_LaneEnds` where there is nothing to dial for any more."""
        if work.envelopes and not work.queue:
            raise _LaneEnds
        if work.envelopes and not await work.owner.before_dial(list(work.queue)):
            work.queue.clear()
            raise _LaneEnds

    async def _dial(self, key: Dial) -> Connection:
        """Dial; again without TLS where the opportunistic handshake failed, once with a fresh secret
        where the login was refused (535, P4)."""
        try:
            return await dial(key, self._settings, self._secrets)
        except ConnectFailed as failed:
            opportunistic = key.tls is TlsMode.OPPORTUNISTIC and not key.hop.implicit_tls
            if failed.error == "tls" and opportunistic:
                return await dial(replace(key, tls=TlsMode.NONE), self._settings, self._secrets)
            if failed.stage == "auth" and failed.code == 535:
                return await dial(key, self._settings, self._secrets, refresh_secret=True)
            raise

    def _dial_for(self, work: Assignment, hop: Hop) -> Dial:
        source = work.source
        return Dial(
            source=source.name,
            hop=hop,
            tls=hop.tls(work.tls),
            ca_file=source.tls.ca_file if source.tls else None,
            bind=source.ip,
            ehlo=source.ehlo or self._settings.hostname or machine_name(),
            auth=source.auth,
            proxy=source.proxy,
        )

    def _limit(self, work: Assignment) -> int:
        limit = work.source.connections or work.provider.connections
        if self._allowed is not None:
            limit = min(limit, self._allowed(*work.place))
        return max(1, limit)
