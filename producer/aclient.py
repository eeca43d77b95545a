"""The asynchronous client: the same surface as :class:`producer.client.Client`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from email.message import Message as StdMessage
from types import TracebackType
from typing import Any

import httpx

from mailweir.contracts.job import Accepted
from mailweir.contracts.submit import Cancelled, JobView, MessageView, TemplateStored

from . import wire
from .client import Answer
from .message import Message, Template


class AsyncClient:
    """Submits messages by HTTP from an event loop. All methods raise
    :class:`~producer.errors.MailError`."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        where = wire.config(url, api_key)
        self._http = httpx.AsyncClient(
            base_url=where.url,
            headers={"Authorization": f"Bearer {where.api_key}", "User-Agent": wire.USER_AGENT},
            timeout=timeout,
            transport=transport,
            follow_redirects=False,
        )

    @classmethod
    def from_env(cls) -> AsyncClient:
        """By ``MAILWEIR_URL`` and ``MAILWEIR_API_KEY``."""
        return cls()

    async def send(self, message: Message | StdMessage, **options: Any) -> Accepted:
        """Submit one message; returns once it is durably accepted. ``options`` overrule its fields."""
        return wire.read_accepted(*await self._call(wire.submit(message, options)))

    async def send_many(
        self,
        messages: Iterable[Message | StdMessage],
        *,
        idempotency_prefix: str | None = None,
        **options: Any,
    ) -> AsyncIterator[wire.ItemResult]:
        """As :meth:`producer.client.Client.send_many`."""
        for first, _count, call in wire.batches(messages, options, idempotency_prefix):
            for result in wire.read_batch(first, *await self._call(call)):
                yield result

    async def store_template(self, template: Template) -> TemplateStored:
        """Store a template once; its id stands for it in messages."""
        return wire.read_template(*await self._call(wire.store_template(template)))

    async def get(self, message_id: str) -> MessageView:
        """A message with its jobs and their states."""
        return wire.read_message(*await self._call(wire.get_message(message_id)))

    async def get_job(self, job_id: str) -> JobView:
        """One job."""
        return wire.read_job(*await self._call(wire.get_job(job_id)))

    async def cancel(self, message_id: str) -> Cancelled:
        """Take back what no worker has taken yet."""
        return wire.read_cancelled(*await self._call(wire.cancel(message_id)))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _call(self, call: wire.Call) -> Answer:
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = await self._http.request(
                    call.method, call.path, content=call.body, headers=dict(call.headers)
                )
                if answer.status_code < 500 and answer.status_code != 429:
                    return answer.status_code, answer.headers, answer.content
                error = wire.failure(answer.status_code, answer.headers, answer.content)
            except httpx.TransportError as trouble:
                error = wire.unreachable(trouble)
            wait = wire.pause(attempt, error)
            if wait is None:
                raise error
            await asyncio.sleep(wait)
