"""The HTTP door: messages in, their states out. Raw Starlette and msgspec: this is the hot path.

``202`` means committed. Every refusal is an RFC 9457 problem with the field's path. Authentication:
``Authorization: Bearer mw_<id>.<secret>``; a tenant sees its own messages and templates only, another
tenant's id is answered like an unknown one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mailweir.contracts.credential import ApiKey
from mailweir.contracts.ids import InvalidId, format_id, new_id, parse_id
from mailweir.contracts.job import Job
from mailweir.contracts.submit import (
    BatchResult,
    Cancelled,
    JobView,
    MessageView,
    Problem,
    SubmitRequest,
    TemplateData,
)
from mailweir.plumbing.apikeys import AuthFailed, KeyRing
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import DatabaseUnavailable
from mailweir.plumbing.settings import Settings
from mailweir.spool.store import Spool
from producer.accept import Reception, Unavailable
from producer.doors.body import decode, read
from producer.policy.refusal import Forbidden, Invalid, Refusal, TooLarge
from producer.templates import Templates

log = structlog.get_logger(__name__)

MAX_BATCH = 1000  # messages of one batch
_SLICE = 50  # messages of a batch built before others get their turn

_encode = msgspec.json.Encoder().encode
_submit = msgspec.json.Decoder(SubmitRequest)
_template = msgspec.json.Decoder(TemplateData)
_array = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True)
class HttpDeps:
    """What the door works with."""

    settings: Settings
    clock: Clock
    reception: Reception
    templates: Templates
    spool: Spool
    keys: KeyRing


class _Unauthorized(Refusal):
    status = 401
    code = "unauthorized"
    title = "Unauthorized"


class _NotFound(Refusal):
    status = 404
    code = "not_found"
    title = "Not found"


def routes(deps: HttpDeps) -> list[Route]:
    """The routes of the submission API, for the web process to mount."""
    door = _Door(deps)
    handlers: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("POST", "/v1/messages", door.submit),
        ("POST", "/v1/messages:batch", door.batch),
        ("POST", "/v1/templates", door.store_template),
        ("GET", "/v1/messages/{id}", door.message),
        ("POST", "/v1/messages/{id}/cancel", door.cancel),
        ("GET", "/v1/jobs/{id}", door.job),
    ]
    return [
        Route(path, _answering(handler), methods=[method]) for method, path, handler in handlers
    ]


def problem(
    status: int, code: str, title: str, detail: str, field: str | None, headers: dict[str, str]
) -> Response:
    """A refusal as ``application/problem+json``."""
    number = format_id(new_id())
    body = Problem(title, status, code, detail, field, request_id=number)
    return Response(
        _encode(body), status, headers | {"X-Request-Id": number}, "application/problem+json"
    )


def _answering(
    handler: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """Every way a call can go wrong, as a problem."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Refusal as r:
            headers = {"WWW-Authenticate": "Bearer"} if r.status == 401 else {}
            return problem(r.status, r.code, r.title, r.why, r.field, headers)
        except Unavailable as error:
            wait = {"Retry-After": str(math.ceil(error.retry_after))}
            return problem(503, "unavailable", "Try again", str(error), None, wait)
        except DatabaseUnavailable:
            why = "the spool cannot be reached"
            return problem(503, "unavailable", "Try again", why, None, {"Retry-After": "2"})
        except Exception:
            log.exception("request failed", path=request.scope["route"].path)
            why = "this is a defect of ours; the call may be made again with the same key"
            return problem(500, "internal", "Internal error", why, None, {})

    return answer


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(body), status, headers, "application/json")


class _Door:
    def __init__(self, deps: HttpDeps) -> None:
        self._deps = deps
        self._limit = deps.settings.web.max_body * 4 // 3 + 65536  # base64 of the largest message

    async def _caller(self, request: Request, scope: str) -> ApiKey:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _Unauthorized(None, "send Authorization: Bearer <API key>")
        now = self._deps.clock.now()
        try:
            if self._deps.keys.cached(token):
                key = self._deps.keys.authenticate(token, now)
            else:
                key = await run_in_threadpool(self._deps.keys.authenticate, token, now)
        except AuthFailed as error:
            raise _Unauthorized(None, str(error)) from None
        if scope not in key.scopes and not (scope == "read" and "send" in key.scopes):
            raise Forbidden(None, f"this API key has no scope {scope!r}")
        return key

    async def submit(self, request: Request) -> Response:
        key = await self._caller(request, "send")
        body = await read(request, self._limit)
        message = _with_key(decode(_submit, body), request.headers.get("idempotency-key"))
        accepted = await self._deps.reception.accept_async(message, key, len(body))
        location = {"Location": f"/v1/messages/{accepted.id}"} if accepted.id else None
        return _json(accepted, 202, location)

    async def batch(self, request: Request) -> Response:
        """JSON array, or one message a line (NDJSON); one result per message, in order."""
        key = await self._caller(request, "send")
        body = await read(request, self._limit)
        if len(body) > 65536:
            items = await run_in_threadpool(_items, body)
        else:
            items = _items(body)
        if len(items) > MAX_BATCH:
            raise TooLarge(None, f"{len(items)} messages; a batch may have {MAX_BATCH}")
        prefix = request.headers.get("idempotency-key")
        results: list[BatchResult] = []
        for start in range(0, len(items), _SLICE):
            part = range(start, min(start + _SLICE, len(items)))
            results += await asyncio.gather(
                *(self._item(i, items[i], key, f"{prefix}:{i}" if prefix else None) for i in part)
            )
        if all(result.status == 503 for result in results) and results:
            raise Unavailable("the spool cannot be written")
        if "ndjson" in request.headers.get("accept", ""):
            text = b"".join(_encode(result) + b"\n" for result in results)
            return Response(text, 202, media_type="application/x-ndjson")
        return _json({"results": results}, 202)

    async def _item(
        self, index: int, raw: bytes | msgspec.Raw, key: ApiKey, name: str | None
    ) -> BatchResult:
        try:
            message = _with_key(decode(_submit, raw), name, weak=True)
            size = memoryview(raw).nbytes
            accepted = await self._deps.reception.accept_async(message, key, size)
        except Refusal as r:
            found = Problem(r.title, r.status, r.code, r.why, r.field)
            return BatchResult(index, r.status, problem=found)
        except Unavailable as error:
            found = Problem("Try again", 503, "unavailable", str(error))
            return BatchResult(index, 503, problem=found)
        return BatchResult(index, 202, answer=accepted)

    async def store_template(self, request: Request) -> Response:
        key = await self._caller(request, "send")
        data = decode(_template, await read(request, self._limit))
        now = self._deps.clock.now()
        stored = await run_in_threadpool(self._deps.templates.add, key.tenant, data, now)
        return _json(stored, 201)

    async def message(self, request: Request) -> Response:
        key = await self._caller(request, "read")
        number = _id(request)
        jobs = await run_in_threadpool(self._deps.spool.jobs_of, number)
        jobs = [job for job in jobs if job.tenant == key.tenant]
        if not jobs:
            raise _NotFound(None, "there is no such message")
        states: dict[str, int] = {}
        for job in jobs:
            states[job.state] = states.get(job.state, 0) + 1
        return _json(MessageView(format_id(number), states, [_view(job) for job in jobs]))

    async def job(self, request: Request) -> Response:
        key = await self._caller(request, "read")
        job = await run_in_threadpool(self._deps.spool.job, _id(request))
        if job is None or job.tenant != key.tenant:
            raise _NotFound(None, "there is no such job")
        return _json(_view(job))

    async def cancel(self, request: Request) -> Response:
        """Take back what no worker has taken yet."""
        key = await self._caller(request, "send")
        number = _id(request)
        jobs = await run_in_threadpool(self._deps.spool.jobs_of, number)
        if not any(job.tenant == key.tenant for job in jobs):
            raise _NotFound(None, "there is no such message")

        def work() -> int:
            now = self._deps.clock.now()
            return self._deps.spool.cancel(now, message=number, tenant=key.tenant)

        return _json(Cancelled(format_id(number), await run_in_threadpool(work)))


def _id(request: Request) -> int:
    try:
        return parse_id(request.path_params["id"])
    except InvalidId:
        raise _NotFound(None, "this is no id of ours") from None


def _with_key(message: SubmitRequest, header: str | None, *, weak: bool = False) -> SubmitRequest:
    """The idempotency key of the header; ``weak``: one in the message goes before it."""
    if header is None or (weak and message.idempotency_key is not None):
        return message
    if message.idempotency_key not in (None, header):
        raise Invalid("idempotency_key", "differs from the Idempotency-Key header")
    return msgspec.structs.replace(message, idempotency_key=header)


def _items(body: bytes) -> list[bytes | msgspec.Raw]:
    if body.lstrip()[:1] == b"[":
        found: list[bytes | msgspec.Raw] = [*decode(_array, body)]
        return found
    return [line for line in body.split(b"\n") if line.strip()]


def _view(job: Job) -> JobView:
    return JobView(
        id=format_id(job.id),
        message_id=format_id(job.message_id),
        recipient=job.recipient,
        state=job.state,
        bucket=job.bucket.value,
        priority=job.priority,
        attempts=job.attempts,
        accepted_at=job.accepted_at,
        due_at=job.due_at,
        expires_at=job.expires_at,
        reason=job.reason,
        campaign=job.meta.campaign,
        tags=job.meta.tags,
        metadata=job.meta.metadata,
    )
