"""ESPs by HTTP behind the same seam: SES v2 and Mailgun take our bytes, SendGrid its JSON.

What they answer becomes a :class:`Result` in SMTP's words, so that classification, retry, breakers and
scores treat it like any reply: taken is 250 at stage dot, a quota 451 4.7.0 with ``retry_after``.

Sources: docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html;
documentation.mailgun.com, "Send an email in MIME format"; docs.sendgrid.com, "v3 Mail Send".
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx
import msgspec
import tenacity

from mailweir.contracts.policy import Source
from mailweir.plumbing.secrets import Secrets, SecretUnavailable
from mailweir.plumbing.settings import SmtpSettings
from workers.delivery import http_requests
from workers.delivery.conversation import encode, hide
from workers.delivery.owner import Owner
from workers.delivery.replies import printable
from workers.delivery.types import Envelope, Result

KINDS = frozenset(http_requests.BUILDERS)
CONNECT_TRIES = 3


@dataclass(frozen=True, slots=True)
class _Answer:
    """An HTTP outcome in SMTP's words; the fields are those of ``Result``."""

    stage: str
    code: int | None
    text: str
    error: str | None = None
    dot_sent: bool = False
    retry_after: float | None = None


class HttpApi:
    """Sends envelopes through ESPs' APIs. Belongs to one event loop."""

    def __init__(self, settings: SmtpSettings, secrets: Secrets) -> None:
        self._settings = settings
        self._secrets = secrets
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def deliver(
        self,
        source: Source,
        envelopes: Sequence[Envelope],
        *,
        owner: Owner,
        max_connections: int,
    ) -> None:
        """As :meth:`Transport.deliver`. After a 429 nothing more is asked: the rest ends like it."""
        queue = deque(envelopes)
        stopped: list[_Answer] = []

        async def lane() -> None:
            while queue:
                envelope = queue.popleft()
                if stopped:
                    owner.ended(self._result(source, envelope, stopped[0], 0.0))
                    continue
                said = owner.at_once(envelope)
                if said is False or (said is None and not await owner.ask(envelope)):
                    continue
                booked = owner.begins(envelope)
                if booked is not None:
                    try:
                        await booked.wait()
                    except asyncio.CancelledError:
                        owner.unsent(envelope)
                        raise
                if not owner.still(envelope):
                    continue
                begun = time.monotonic()
                try:
                    answer = await self._send(source, envelope)
                except asyncio.CancelledError:
                    cut = _Answer("dot", None, "cut by us while the API was asked", "closed", True)
                    owner.ended(self._result(source, envelope, cut, time.monotonic() - begun))
                    raise
                if answer.retry_after is not None or answer.stage == "auth":
                    stopped.append(answer)
                owner.ended(self._result(source, envelope, answer, time.monotonic() - begun))

        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, min(max_connections, len(envelopes)))):
                group.create_task(lane())

    async def close(self) -> None:
        """Close the HTTP connections."""
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    # --- inside -----------------------------------------------------------------------------
    async def _send(self, source: Source, envelope: Envelope) -> _Answer:
        """One envelope; asked again with a fresh secret after a refused login."""
        answer = await self._once(source, envelope, refresh=False)
        if answer.stage == "auth" and answer.code == 535:
            answer = await self._once(source, envelope, refresh=True)
        return answer

    async def _once(self, source: Source, envelope: Envelope, *, refresh: bool) -> _Answer:
        if source.auth is None:
            return _Answer("auth", None, "the source has no credentials", "auth")
        fetch = self._secrets.refresh if refresh else self._secrets.get
        try:
            secret = await asyncio.to_thread(fetch, source.auth.secret)
            request = http_requests.BUILDERS[source.kind](source, secret, envelope)
        except SecretUnavailable as error:
            return _Answer("auth", None, str(error), "auth")
        except http_requests.CannotSend as error:
            return _Answer("connect", None, str(error), "unreachable")
        client = self._client(source)
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(CONNECT_TRIES),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
            # only what never reached them may be repeated here; all else is the retry policy's
            retry=tenacity.retry_if_exception_type((httpx.ConnectError, httpx.ConnectTimeout)),
            reraise=True,
        )
        try:
            response: httpx.Response = await retrying(client.send, request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            kind = "refused" if isinstance(error, httpx.ConnectError) else "timeout"
            return _Answer("connect", None, f"cannot reach the API: {type(error).__name__}", kind)
        except httpx.TransportError as error:
            kind = "timeout" if isinstance(error, httpx.TimeoutException) else "reset"
            text = f"no answer from the API: {type(error).__name__}"
            return _Answer("dot", None, text, kind, dot_sent=True)
        return judge(source.kind, response)

    def _client(self, source: Source) -> httpx.AsyncClient:
        client = self._clients.get(source.name)
        if client is None:
            limits = self._settings
            timeout = httpx.Timeout(limits.dot, connect=limits.connect, write=limits.block)
            client = self._clients[source.name] = httpx.AsyncClient(
                timeout=timeout, proxy=source.proxy, follow_redirects=False, trust_env=False
            )
        return client

    def _result(self, source: Source, envelope: Envelope, answer: _Answer, took: float) -> Result:
        host = http_requests.base_url(source)
        text = hide(answer.text, envelope.rcpt)[: self._settings.reply_kept]
        ms = round(took * 1000)
        steps = [(0, ">", f"POST for {source.kind}"), (ms, "!" if answer.error else "<", text)]
        told = encode(host, host.startswith("https"), 1, steps) if took else None
        tls = host.startswith("https")
        result = Result(
            envelope.job_id, answer.stage, answer.code, text, host, took, answer.dot_sent,
            answer.error, tls, told if self._settings.conversation else None,
        )  # fmt: skip
        return msgspec.structs.replace(result, retry_after=answer.retry_after)


def judge(kind: str, response: httpx.Response) -> _Answer:
    """What an API's answer means."""
    status = response.status_code
    said = printable(response.content, 600)
    heard = f"{kind} said HTTP {status}: {said}"
    if status in (200, 202):
        said = said or printable(response.headers.get("x-message-id", "").encode(), 100)
        return _Answer("dot", 250, f"250 2.0.0 {kind} took it: {said or 'accepted'}", None, True)
    if status in (401, 403) and not _quota(said):
        return _Answer("auth", 535, f"535 5.7.8 {heard}")
    if status == 429 or _quota(said):
        wait = retry_after(response.headers, time.time())
        return _Answer("dot", 451, f"451 4.7.0 rate limit: {heard}", retry_after=wait)
    if status == 413:
        return _Answer("dot", 552, f"552 5.3.4 too big: {heard}")
    if status in (502, 504):
        # a gateway between us lost the answer, not necessarily the mail
        return _Answer("dot", None, heard, "closed", dot_sent=True)
    if status >= 500 or status == 408:
        return _Answer("dot", 451, f"451 4.3.0 {heard}")
    if "MessageRejected" in heard or "MessageRejected" in response.headers.get(
        "x-amzn-errortype", ""
    ):
        return _Answer("dot", 554, f"554 5.7.1 message rejected: {heard}")
    return _Answer("dot", 554, f"554 5.6.0 {heard}")


def _quota(said: str) -> bool:
    """SES names its quota in words, with status 400 or 403 too."""
    return any(word in said for word in ("TooManyRequests", "LimitExceeded", "Throttling"))


def retry_after(headers: httpx.Headers, now: float) -> float:
    """Seconds to wait: ``Retry-After`` (RFC 9110 10.2.3), SendGrid's ``X-RateLimit-Reset``, else 60."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), 86400.0)
    if text:
        try:
            return min(max(parsedate_to_datetime(text).timestamp() - now, 1.0), 86400.0)
        except ValueError:
            return 60.0
    reset = headers.get("x-ratelimit-reset", "").strip()
    if reset.isascii() and reset.isdigit():
        return min(max(float(reset) - now, 1.0), 86400.0)
    return 60.0
