"""Sending through a transport of its own, for tests: what goes in, what came back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from mailweir.contracts.policy import Provider, Source
from mailweir.plumbing.secrets import Secrets
from mailweir.plumbing.settings import Settings
from tests.unit.delivery.scripted import Act, Answer
from workers.delivery.owner import PlainOwner
from workers.delivery.transport import Transport
from workers.delivery.types import Destination, Envelope, Hop, Result
from workers.patience import Patience

BODY = b"From: a@s.test\r\nTo: b@d.test\r\nSubject: hello\r\n\r\nhello\r\n"
PATIENCE = 60.0
"""Seconds an SMTP phase may take: a busy machine that stands still for a moment times out no mail."""
PHASES = ("connect", "banner", "helo", "mail", "rcpt", "data", "block", "dot")
GIVEN_UP = 0.4
"""Seconds a server is listened to that the test lets say nothing."""
PHASE_OF = {"ehlo": "helo", "starttls": "helo"}  # elsewhere the stage's own name


def hasty(answers: Mapping[str, Answer | list[Answer]]) -> dict[str, Any]:
    """Settings with which what a scripted server leaves unsaid is soon given up; every other phase is
    patient."""
    found = {}
    for stage, script in answers.items():
        for answer in script if isinstance(script, list) else [script]:
            if answer is Act.DEAF:
                found["block"] = GIVEN_UP
            elif answer in (Act.SILENCE, Act.HALF) or _breaks_off(answer):
                found[PHASE_OF.get(stage, stage)] = GIVEN_UP
    return found


def _breaks_off(answer: Answer) -> bool:
    return isinstance(answer, bytes) and not answer.endswith(b"\n")


def mail(number: int = 1, data: bytes = BODY, rcpt: str | None = None) -> Envelope:
    return Envelope(number, "bounce@s.test", rcpt or f"user{number}@d.test", data)


def mails(count: int) -> list[Envelope]:
    return [mail(i) for i in range(1, count + 1)]


def hop(port: int, host: str = "127.0.0.1") -> Hop:
    return Hop(host, port, "127.0.0.1", trusted=True)


async def yes(_: Envelope) -> bool:
    return True


class Sender:
    """``async with Sender(...) as sender: results = await sender.send(hops, envelopes)``."""

    def __init__(
        self, source: Source | None = None, provider: Provider | None = None, **smtp: Any
    ) -> None:
        settings = Settings.model_validate({"smtp": {**dict.fromkeys(PHASES, PATIENCE), **smtp}})
        self.open: dict[tuple[str, str], int] = {}
        self.peak = 0
        self.transport = Transport(settings, Secrets(settings), on_connections=self._changed)
        self.source = source or Source("s1")
        self.provider = provider or Provider("p", connections=5, per_connection=100, idle=5.0)

    def _changed(self, source: str, site: str, count: int) -> None:
        self.open[(source, site)] = count
        self.peak = max(self.peak, sum(self.open.values()))

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.transport.close()
        assert not any(self.open.values()), "a connection was left open"

    async def send(
        self,
        hops: int | Sequence[Hop],
        envelopes: Sequence[Envelope],
        *,
        tls: str = "opportunistic",
        connections: int = 1,
        before_body: Callable[[Envelope], Awaitable[bool]] = yes,
        still: Callable[[Envelope], bool] | None = None,
        source: Source | None = None,
        patience: Patience | None = None,
    ) -> list[Result]:
        hosts = (hop(hops),) if isinstance(hops, int) else tuple(hops)
        results: list[Result] = []
        await self.transport.deliver(
            source or self.source,
            Destination("d.test", "p", hosts),
            envelopes,
            provider=self.provider,
            tls=tls,
            owner=PlainOwner(results.append, before_body, still),
            max_connections=connections,
            patience=patience,
        )
        ids = [result.job_id for result in results]
        assert len(ids) == len(set(ids)), "an envelope got two results"
        return results

    async def one(self, hops: int | Sequence[Hop], **options: Any) -> Result:
        (result,) = await self.send(hops, [mail()], **options)
        return result

    async def one_to(self, hops: Sequence[Hop], rcpt: str, **options: Any) -> Result:
        (result,) = await self.send(hops, [mail(rcpt=rcpt)], **options)
        return result
