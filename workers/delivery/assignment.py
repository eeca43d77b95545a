"""What one call of ``deliver`` has to do: envelopes left, hosts left, and how each envelope ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from mailweir.contracts.policy import Provider, Source
from mailweir.mail.classify import classify
from workers.delivery import conversation
from workers.delivery.connection import ConnectFailed
from workers.delivery.conversation import Step, hide
from workers.delivery.owner import Booked, Owner
from workers.delivery.pool import Place
from workers.delivery.transaction import Broken
from workers.delivery.types import Destination, Envelope, Hop, Result, TlsMode
from workers.patience import Patience

MAILS_A_LOOK = 8
"""Mails between two looks whether more connections are free."""

HOST_FAULTS = frozenset({"server_error", "network_error"})  # categories that blame one host


class Assignment:
    """What one call of ``deliver`` has to do."""

    def __init__(
        self,
        source: Source,
        destination: Destination,
        envelopes: Sequence[Envelope],
        provider: Provider,
        tls: TlsMode,
        owner: Owner,
        conversations: bool,
        patience: Patience | None = None,
    ) -> None:
        self.conversations = conversations
        self.owner = owner
        self.patience = patience
        self.lanes = 0  # connections at work for it, or being opened
        self.more: Callable[[], None] | None = None  # opens further ones where it is worth it
        self.source = source
        self.place: Place = (source.name, destination.site)
        self.hops = [hop for hop in destination.hosts if _fits(hop, source, provider)]
        self.queue = deque(envelopes)
        self.provider = provider
        self.tls = tls
        self.envelopes = {envelope.job_id: envelope for envelope in envelopes}
        self.dead: dict[Hop, ConnectFailed | Broken | Result] = {}
        self.begun: dict[int, int] = {}
        self.login_failed: ConnectFailed | None = None
        self.started = asyncio.get_running_loop().time()

    def alive(self) -> bool:
        """A host is left."""
        return any(hop not in self.dead for hop in self.hops)

    def again(self, envelope: Envelope) -> None:
        """It begins anew, before all others."""
        self.owner.unsent(envelope)
        self.queue.appendleft(envelope)

    def judge(self, hop: Hop, result: Result) -> None:
        """Pass a result on; but where 450 or 451 say that this host is sick (S35), try the next one."""
        sick = (
            result.code in (450, 451)
            and result.stage in ("mail", "rcpt", "data")
            and len(self.hops) > 1
            and classify(result.reply, stage=result.stage).category in HOST_FAULTS
        )
        if sick:
            self.dead[hop] = result
            if self.alive():
                self.again(self.envelopes[result.job_id])
                return
        if self.dead:
            result = msgspec.structs.replace(result, layer="connection")
        self.owner.ended(result)

    def settle(
        self, envelope: Envelope, failed: ConnectFailed | Broken | Result | None, host: str
    ) -> None:
        """End an envelope by a connection-layer failure."""
        if isinstance(failed, Result):
            self.owner.ended(msgspec.structs.replace(failed, job_id=envelope.job_id))
            return
        if isinstance(failed, Broken):
            reply = failed.lost.reply
            self.owner.ended(
                Result(
                    envelope.job_id,
                    failed.stage,
                    reply.code if reply else None,
                    hide(reply.text if reply else failed.lost.detail, envelope.rcpt),
                    host,
                    failed.seconds,
                    error=None if reply else failed.lost.kind,
                    conversation=failed.conversation,
                )
            )
            return
        seconds = asyncio.get_running_loop().time() - self.started
        if failed is None:
            text = "no address of a family this source can use"
            self.owner.ended(
                Result(envelope.job_id, "connect", None, text, host, seconds, error="unreachable")
            )
            return
        self.owner.ended(
            Result(
                envelope.job_id,
                failed.stage,
                failed.code,
                hide(failed.reply, envelope.rcpt),
                host,
                seconds,
                error=failed.error,
                conversation=self._openings(host) if self.conversations else None,
            )
        )

    def _openings(self, host: str) -> str:
        """What was said to every host that could not be used."""
        steps: list[Step] = []
        for hop, failed in self.dead.items():
            if isinstance(failed, ConnectFailed):
                steps.append((0, "!", f"{hop.host}:{hop.port} {hop.address or ''}".rstrip()))
                steps += failed.handshake.steps
        return conversation.encode(host, False, 0, steps)

    def settle_all(self) -> None:
        """No host is left: every envelope still waiting ends with the last host's failure."""
        hop, failed = next(reversed(self.dead.items()), (None, None))
        if self.login_failed is not None:
            failed = self.login_failed
        host = f"{hop.host}:{hop.port}" if hop else ""
        while self.queue:
            self.settle(self.queue.popleft(), failed, host)


class Feed:
    """A connection's part of an assignment, as long as its host is worth it."""

    __slots__ = ("_hop", "_work")

    def __init__(self, work: Assignment, hop: Hop) -> None:
        self._work, self._hop = work, hop

    def at_once(self) -> Envelope | None:
        """See :class:`workers.delivery.transaction.Feed`."""
        queue, owner, dead = self._work.queue, self._work.owner, self._work.dead
        while queue and self._hop not in dead:
            said = owner.at_once(queue[0])
            if said is None:
                return None
            envelope = queue.popleft()
            if said:
                return envelope
        return None

    async def take(self) -> Envelope | None:
        """See :class:`workers.delivery.transaction.Feed`."""
        queue, owner, dead = self._work.queue, self._work.owner, self._work.dead
        while queue and self._hop not in dead:
            envelope = queue.popleft()
            said = owner.at_once(envelope)
            if said or (said is None and await owner.ask(envelope)):
                return envelope
        return None

    def begins(self, envelope: Envelope) -> Booked | None:
        """See :class:`workers.delivery.transaction.Feed`."""
        return self._work.owner.begins(envelope)

    def still(self, envelope: Envelope) -> bool:
        """See :class:`workers.delivery.transaction.Feed`."""
        return self._work.owner.still(envelope)

    def unsent(self, envelope: Envelope) -> None:
        """See :class:`workers.delivery.transaction.Feed`."""
        self._work.owner.unsent(envelope)

    def ended(self, result: Result) -> None:
        """See :class:`workers.delivery.transaction.Feed`."""
        work = self._work
        work.judge(self._hop, result)
        if work.more is not None and len(work.queue) % MAILS_A_LOOK == MAILS_A_LOOK - 1:
            work.more()


def _fits(hop: Hop, source: Source, provider: Provider) -> bool:
    """The source can reach this address family."""
    if hop.address is None:
        return True
    sixth = ":" in hop.address
    if sixth and not provider.ipv6:
        return False
    return source.ip is None or (":" in source.ip) == sixth
