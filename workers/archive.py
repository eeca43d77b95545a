"""Copies for the archive a rule names (``orders.archive``): the bytes that went out, in an envelope of ours.

One copy for each acceptance by the remote, sent after the job's outcome is committed, so that it can
never change it. Best effort, tried once: a copy whose worker ends first, whose archive refuses it or
whose path has no token within the worker's longest wait is lost, counted and logged. The reverse-path
is null: a bounce of the copy must not be taken for a bounce of the mail. It takes tokens and
connection leases like any mail of its source, but tells the path's breaker nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog
from prometheus_client import Counter

from mailweir.contracts.route import Orders
from mailweir.plumbing.clock import Clock
from workers.connections import Connections
from workers.delivery.destinations import Destinations, DnsTrouble, NoMail
from workers.delivery.owner import PlainOwner
from workers.delivery.transport import Transport
from workers.delivery.types import Envelope, Result
from workers.engine_run import Ready, Run
from workers.engine_views import Views
from workers.patience import Patience
from workers.policy.tls import tls_mode
from workers.throttle.layers import Ask, layers_for
from workers.throttle.types import Limiter

log = structlog.get_logger(__name__)

COPIES = Counter(
    "mailweir_archive_copies_total", "Copies for archives, by what became of them.", ["what"]
)


@dataclass(frozen=True, slots=True)
class Archive:
    """Sends copies. ``wait``: real seconds a copy may wait for a token or a connection."""

    limiter: Limiter
    transport: Transport
    destinations: Destinations
    connections: Connections
    views: Views
    clock: Clock
    wait: float
    worker: str

    async def send(self, run: Run, sent: Sequence[Ready]) -> None:
        """Send the copies of mails of a run that the remote took. Raises nothing but a cancellation."""
        groups: dict[tuple[str, str, str], list[Ready]] = defaultdict(list)
        for ready in sent:
            work = ready.work
            groups[work.orders.archive or "", work.pool, work.job.tenant].append(ready)
        for (address, pool, tenant), some in groups.items():
            try:
                await self._send(run, address, pool, tenant, some)
            except (NoMail, DnsTrouble) as error:
                COPIES.labels("failed").inc(len(some))
                log.warning("archive not reached", rule=some[0].work.orders.rule, why=str(error))
            except Exception:
                COPIES.labels("failed").inc(len(some))
                log.exception("archive failed", rule=some[0].work.orders.rule)

    async def _send(
        self, run: Run, address: str, pool: str, tenant: str, some: Sequence[Ready]
    ) -> None:
        source, bucket = run.source, run.chunk.bucket
        place = await self.destinations.resolve(address.rpartition("@")[2], source)
        provider = self.views.provider(run.policy, place.provider)
        ask = Ask(
            source.name,
            provider.name,
            layers_for(
                run.policy,
                run.snapshot,
                source=source,
                provider=provider,
                pool=pool,
                bucket=bucket,
                tenant=tenant,
                orders=Orders(),  # a rule's own limits count its jobs, not their copies
                throttled=False,
                worker=self.worker,
            ),
        )
        end = time.monotonic() + self.wait
        left = len(some)

        async def token(_: Envelope) -> bool:
            return await self._token(ask, end)

        def ended(result: Result) -> None:
            nonlocal left
            left -= 1
            COPIES.labels("sent" if result.accepted else "failed").inc()
            if not result.accepted:
                log.warning("archive refused a copy", stage=result.stage, code=result.code)

        cap = source.connections or provider.connections
        async with self.connections.using(
            source.name, place.site, 1, cap, self.wait, lambda: True
        ) as allowed:
            if allowed:
                await self.transport.deliver(
                    source,
                    place,
                    [replace(r.envelope, mail_from="", rcpt=address) for r in some],
                    provider=provider,
                    tls=tls_mode(run.policy, source, provider, some[0].work.orders),
                    owner=PlainOwner(ended, token),
                    max_connections=1,
                    patience=Patience(max(0.0, end - time.monotonic())),
                )
        if left:
            COPIES.labels("dropped").inc(left)
            log.warning(
                "copies dropped: no token or connection in time",
                rule=some[0].work.orders.rule,
                copies=left,
            )

    async def _token(self, ask: Ask, end: float) -> bool:
        while True:
            [grant] = await self.limiter.take([(ask, 1)])
            if grant.granted:
                return True
            wait = max(0.01, self.clock.real(grant.places[0] - self.clock.now()))
            if time.monotonic() + wait > end:
                return False
            await asyncio.sleep(wait)
