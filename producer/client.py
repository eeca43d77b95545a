"""The synchronous client.

::

    from mailweir import Client, Message

    with Client.from_env() as client:
        answer = client.send(Message(from_="Acme <hi@acme.example>", to="jane@example.com",
                                     subject="Reset", text="..."))
        print(answer.id, answer.jobs[0].status)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from email.message import Message as StdMessage
from types import TracebackType
from typing import Any

import httpx

from mailweir.contracts.job import Accepted
from mailweir.contracts.submit import Cancelled, JobView, MessageView, TemplateStored

from . import wire
from .message import Message, Template

Answer = tuple[int, Mapping[str, str], bytes]


class Client:
    """Submits messages by HTTP. Thread-safe; keeps connections; repeats what may be repeated.

    All methods raise :class:`~producer.errors.MailError`."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        where = wire.config(url, api_key)
        self._http = httpx.Client(
            base_url=where.url,
            headers={"Authorization": f"Bearer {where.api_key}", "User-Agent": wire.USER_AGENT},
            timeout=timeout,
            transport=transport,
            follow_redirects=False,
        )

    @classmethod
    def from_env(cls) -> Client:
        """By ``MAILWEIR_URL`` and ``MAILWEIR_API_KEY``."""
        return cls()

    def send(self, message: Message | StdMessage, **options: Any) -> Accepted:
        """Submit one message; returns once it is durably accepted. ``options`` overrule its fields.

        A stdlib ``EmailMessage`` is sent byte for byte."""
        return wire.read_accepted(*self._call(wire.submit(message, options)))

    def send_many(
        self,
        messages: Iterable[Message | StdMessage],
        *,
        idempotency_prefix: str | None = None,
        **options: Any,
    ) -> Iterator[wire.ItemResult]:
        """Submit any number of messages in batches; one result each, in order, as batches end.

        ``messages`` may be a generator: memory stays constant. With a prefix the keys are
        ``prefix:index``, so that a broken run may simply be started again. One message's error does
        not stop the others."""
        for first, _count, call in wire.batches(messages, options, idempotency_prefix):
            yield from wire.read_batch(first, *self._call(call))

    def store_template(self, template: Template) -> TemplateStored:
        """Store a template once; its id stands for it in messages."""
        return wire.read_template(*self._call(wire.store_template(template)))

    def get(self, message_id: str) -> MessageView:
        """A message with its jobs and their states."""
        return wire.read_message(*self._call(wire.get_message(message_id)))

    def get_job(self, job_id: str) -> JobView:
        """One job."""
        return wire.read_job(*self._call(wire.get_job(job_id)))

    def cancel(self, message_id: str) -> Cancelled:
        """Take back what no worker has taken yet."""
        return wire.read_cancelled(*self._call(wire.cancel(message_id)))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, call: wire.Call) -> Answer:
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = self._http.request(
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
            time.sleep(wait)
