"""Accept: the one way into the house, behind every door.

A door hands over what it was asked; the answer comes after the commit, never before (RFC 5321 6.1).
Messages of all doors of a process share commits: one writer thread takes whatever waits. A commit that
fails or takes too long is :class:`Unavailable`, which a client repeats under the same idempotency key.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import NamedTuple

import prometheus_client
import structlog

from mailweir.contracts.credential import ApiKey
from mailweir.contracts.ids import format_id, new_ids
from mailweir.contracts.job import Accepted, Bucket, NewMessage
from mailweir.contracts.submit import SubmitRequest
from mailweir.plumbing.bell import Bell
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import DatabaseUnavailable
from mailweir.plumbing.settings import AcceptSettings, Settings
from mailweir.spool.store import Conflict, Spool, Unstorable
from producer.policy.build import Built, Rules, Stored, build, template_id
from producer.policy.refusal import Forbidden, Invalid, Refusal
from producer.templates import Templates

log = structlog.get_logger(__name__)

_COMMITS = prometheus_client.Histogram(
    "mailweir_accept_commit_seconds", "Seconds of one group commit."
)
_ACCEPTED = prometheus_client.Counter(
    "mailweir_accepted_jobs_total", "Jobs committed by the doors.", ["bucket"]
)
_REFUSED = prometheus_client.Counter(
    "mailweir_accept_refused_total", "Submissions refused by the doors.", ["code"]
)

Answer = Accepted | Conflict | Unstorable


class Unavailable(Exception):
    """Not accepted, or not known to be: the same call with the same key may be made again.

    ``retry_after`` is in real seconds."""

    def __init__(self, why: str, retry_after: float = 2.0) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class KeyConflict(Refusal):
    """The idempotency key was used for other content (P5)."""

    status = 409
    code = "idempotency_conflict"
    title = "Idempotency conflict"


class _Waiting(NamedTuple):
    message: NewMessage
    size: int
    future: Future[Answer]


class Acceptor:
    """The group commit of a process. Start one, hand it to the doors, close it at the end."""

    def __init__(self, spool: Spool, settings: AcceptSettings, bell: Bell) -> None:
        """``bell`` is closed with it."""
        self._bell = bell
        self._spool = spool
        self._settings = settings
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._bytes = 0
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="accept", daemon=True)
        self._thread.start()

    def submit(self, message: NewMessage) -> Future[Answer]:
        """Queue a message for the next commit. The future holds the spool's answer, or
        DatabaseUnavailable. Raises :class:`Unavailable` at once when too much waits already."""
        size = len(message.content.body) + 512 * len(message.jobs)
        with self._lock:
            if self._closed:
                raise Unavailable("this process is stopping")
            if self._bytes + size > self._settings.max_waiting_bytes and self._bytes:
                raise Unavailable("too much waits to be written", 1.0)
            self._bytes += size
            future: Future[Answer] = Future()
            self._queue.put(_Waiting(message, size, future))
        return future

    def close(self) -> None:
        """Commit what waits, then end the writer."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join(timeout=self._settings.commit_timeout)
        self._bell.close()

    def _run(self) -> None:
        running = True
        while running:
            group: list[_Waiting] = []
            running = self._gather(group)
            live = [w for w in group if w.future.set_running_or_notify_cancel()]
            if live:
                self._commit(live)
            with self._lock:
                self._bytes -= sum(w.size for w in group)

    def _gather(self, group: list[_Waiting]) -> bool:
        """Wait for a message, then for company: some milliseconds, or until the group is full."""
        first = self._queue.get()
        if first is None:
            return False
        group.append(first)
        rows = len(first.message.jobs)
        deadline = time.monotonic() + self._settings.group_commit
        while rows < self._settings.group_rows:
            try:
                item = self._queue.get(timeout=max(deadline - time.monotonic(), 0.0001))
            except queue.Empty:
                return True
            if item is None:
                return False
            group.append(item)
            rows += len(item.message.jobs)
        return True

    def _commit(self, group: list[_Waiting]) -> None:
        begun = time.perf_counter()
        try:
            answers: Sequence[Answer] = self._spool.accept([w.message for w in group])
        except DatabaseUnavailable as error:
            log.warning("accept failed", why=str(error), messages=len(group))
            for waiting in group:
                waiting.future.set_exception(error)
            return
        except Exception as error:
            # a defect must not take its neighbours along: each message once more on its own
            if len(group) > 1:
                for waiting in group:
                    self._commit([waiting])
                return
            log.exception("accept failed for one message", id=group[0].message.id)
            group[0].future.set_exception(error)
            return
        _COMMITS.observe(time.perf_counter() - begun)
        for waiting, answer in zip(group, answers, strict=True):
            if isinstance(answer, Accepted) and not answer.duplicate:
                _ACCEPTED.labels(waiting.message.bucket.value).inc(len(waiting.message.jobs))
            with contextlib.suppress(InvalidStateError):  # the door gave up waiting meanwhile
                waiting.future.set_result(answer)
        if any(w.message.bucket is Bucket.TRANSACTIONAL for w in group):
            self._bell.ring()


class Reception:
    """What a door calls: check, build, commit, answer. Sync for threads, async for the HTTP door."""

    def __init__(
        self,
        acceptor: Acceptor,
        templates: Templates,
        settings: Settings,
        clock: Clock,
        unsubscribe_url: Callable[[int, str, str, str], str],
    ) -> None:
        self._acceptor = acceptor
        self._templates = templates
        self._clock = clock
        self._timeout = settings.accept.commit_timeout
        self.rules = Rules(
            max_recipients=settings.web.max_recipients,
            max_body=settings.web.max_body,
            max_headers=settings.accept.max_headers,
            max_header=settings.accept.max_header,
            max_parts=settings.accept.max_parts,
            sender_domain=settings.sender_domain,
            unsubscribe_url=unsubscribe_url,
        )

    def prepare(self, request: SubmitRequest, key: ApiKey) -> Built:
        """Check and build, nothing stored. May read a template from the database.

        Raises :class:`Refusal`, :class:`Unavailable`."""
        try:
            if "send" not in key.scopes:
                raise Forbidden(None, "this API key has no scope 'send'")
            stored: Stored | None = None
            wanted = template_id(request)
            if wanted is not None:
                stored = self._templates.get(key.tenant, wanted)
            now = self._clock.now()
            built = build(request, key, now, self.rules, ids=new_ids, stored=stored)
            if built.message and built.dropped:
                names = ", ".join(dict.fromkeys(built.dropped))
                log.info("headers dropped", names=names, message=format_id(built.message.id))
            return built
        except Refusal as refusal:
            _REFUSED.labels(refusal.code).inc()
            raise
        except DatabaseUnavailable as error:
            raise Unavailable("the spool cannot be read") from error

    def needs_thread(self, request: SubmitRequest, key: ApiKey, size: int) -> bool:
        """Whether :meth:`prepare` may block an event loop: much to encode, or a template to read."""
        wanted = template_id(request)
        return size > 65536 or (
            wanted is not None and not self._templates.cached(key.tenant, wanted)
        )

    def accept(self, request: SubmitRequest, key: ApiKey) -> Accepted:
        """Accept one message. Raises :class:`Refusal`, :class:`Unavailable`."""
        answer = self.accept_many([(request, key)])[0]
        if isinstance(answer, Refusal):
            raise answer
        return answer

    def accept_many(
        self, calls: Sequence[tuple[SubmitRequest, ApiKey]]
    ) -> list[Accepted | Refusal]:
        """Accept several calls, in shared commits; one refused call harms no other.

        Raises :class:`Unavailable` when the spool cannot commit: then each may be repeated."""
        deadline = time.monotonic() + self._timeout
        pending: list[tuple[Built, Future[Answer] | None] | Refusal] = []
        for request, key in calls:
            try:
                built = self.prepare(request, key)
            except Refusal as refusal:
                pending.append(refusal)
                continue
            pending.append((built, self._acceptor.submit(built.message) if built.message else None))
        out: list[Accepted | Refusal] = []
        for item in pending:
            if isinstance(item, Refusal):
                out.append(item)
                continue
            built, future = item
            try:
                answer = future.result(max(deadline - time.monotonic(), 0)) if future else None
                out.append(_settle(built, answer))
            except Refusal as refusal:
                out.append(refusal)
            except (FutureTimeout, DatabaseUnavailable) as error:
                raise _unavailable(error) from error
        return out

    async def accept_async(self, request: SubmitRequest, key: ApiKey, size: int) -> Accepted:
        """Accept one message from an event loop. Raises :class:`Refusal`, :class:`Unavailable`."""
        if self.needs_thread(request, key, size):
            built = await asyncio.to_thread(self.prepare, request, key)
        else:
            built = self.prepare(request, key)
        return await self.commit_async(built)

    async def commit_async(self, built: Built) -> Accepted:
        """Commit what :meth:`prepare` built. Raises :class:`Refusal`, :class:`Unavailable`."""
        if built.message is None:
            return built.answer(None)
        future = self._acceptor.submit(built.message)
        try:
            answer = await asyncio.wait_for(asyncio.wrap_future(future), self._timeout)
        except (TimeoutError, DatabaseUnavailable) as error:
            raise _unavailable(error) from error
        return _settle(built, answer)


def _unavailable(error: Exception) -> Unavailable:
    if isinstance(error, DatabaseUnavailable):
        return Unavailable("the spool cannot be written")
    return Unavailable(
        "the commit takes too long; repeat the call with the same idempotency key", 5.0
    )


def _settle(built: Built, answer: Answer | None) -> Accepted:
    """The door's answer from the spool's. Raises :class:`Refusal`."""
    if isinstance(answer, Conflict):
        _REFUSED.labels(KeyConflict.code).inc()
        raise KeyConflict("idempotency_key", "was used for another request; keys are kept 72 h")
    if isinstance(answer, Unstorable):
        raise Invalid(None, answer.why)
    return built.answer(answer)
