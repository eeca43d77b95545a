"""One-click unsubscribe (RFC 8058): a token nobody can forge, a POST that acts, a GET that only shows.

The token is opaque: the job's id and an HMAC over job, tenant, bucket and canonical recipient. It says
nothing about the person and cannot be moved to another tenant, list or address. It is good as long as
the job is kept (90 days by default; RFC 8058 mail is read late). Link scanners fetch links with GET, so
GET never unsubscribes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
from typing import Any, NamedTuple

import redis
from redis.exceptions import RedisError
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from mailweir.contracts.events import BounceClass, EventType, Feedback
from mailweir.contracts.ids import new_ids
from mailweir.contracts.lifecycle import Mark
from mailweir.plumbing import keys
from mailweir.plumbing.clock import REAL, Clock
from mailweir.plumbing.database import Database, DatabaseUnavailable
from mailweir.plumbing.events import FEEDBACK, SUPPRESSION, announce
from mailweir.plumbing.install import derive, keyed_hash
from mailweir.spool.feedback import feedback_row, insert_feedback
from mailweir.spool.schema import jobs
from mailweir.spool.store import Spool
from suppression import store
from suppression.projection import Projection
from suppression.rules import unsubscribed

KEY_ID = 1
_MAC = 16  # bytes
MAX_BODY = 4096  # bytes of a POST
BAD_TOKENS = (
    30  # per minute and client before 429; mailbox providers post from few addresses, correctly
)
PATH = "/u/{token}"


class Holder(NamedTuple):
    """Whom a token stands for."""

    job_id: int
    tenant: str
    bucket: str
    recipient_key: str


def _mac(secret: bytes, job_id: int, tenant: str, bucket: str, recipient_key: str) -> bytes:
    parts = (str(KEY_ID), str(job_id), tenant, bucket, recipient_key)
    body = b"".join(len(p.encode()).to_bytes(4, "big") + p.encode() for p in parts)
    return hmac.new(derive(secret, "unsubscribe"), body, hashlib.sha256).digest()[:_MAC]


def make_token(secret: bytes, job_id: int, tenant: str, bucket: str, recipient_key: str) -> str:
    """The token of a job, for ``<public_url>/u/<token>``; ``recipient_key`` is the canonical address."""
    body = bytes([KEY_ID]) + job_id.to_bytes(8, "big")
    body += _mac(secret, job_id, tenant, bucket, recipient_key)
    return base64.urlsafe_b64encode(body).decode().rstrip("=")


def job_of_token(token: str) -> int | None:
    """The job a token claims to be of; nothing is proven by it. None when it is no token."""
    if len(token) > 64 or not token.isascii():
        return None
    try:
        body = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return None
    if len(body) != 9 + _MAC or body[0] != KEY_ID:
        return None
    return int.from_bytes(body[1:9], "big")


def verify_token(secret: bytes, token: str, holder: Holder) -> bool:
    """Whether we made this token for this job, in constant time."""
    made = make_token(secret, holder.job_id, holder.tenant, holder.bucket, holder.recipient_key)
    return hmac.compare_digest(made.encode(), token.encode("ascii", "replace"))


def routes(
    client: redis.Redis, database: Database, secret: bytes, clock: Clock = REAL
) -> list[BaseRoute]:
    """``GET`` and ``POST /u/{token}`` for the web process."""
    desk = _Desk(client, database, secret, clock)

    async def answer(request: Request) -> Response:
        try:
            return await desk.answer(request)
        except DatabaseUnavailable:
            return PlainTextResponse("try again later\n", 503, {"Retry-After": "30"})

    return [Route(PATH, answer, methods=["GET", "POST"])]


class _Desk:
    def __init__(
        self, client: redis.Redis, database: Database, secret: bytes, clock: Clock
    ) -> None:
        self._redis = client
        self._database = database
        self._secret = secret
        self._clock = clock
        self._projection = Projection(client, database, secret)
        self._spool = Spool(database)

    async def answer(self, request: Request) -> Response:
        token = str(request.path_params["token"])
        host = request.client.host if request.client else "?"
        holder = await run_in_threadpool(self._holder, token)
        if holder is None:
            if await run_in_threadpool(self._too_many, host):
                return PlainTextResponse("too many wrong links\n", 429, {"Retry-After": "60"})
            return _page("This link is not valid (any more).", 404)
        if request.method != "POST":
            return _page(_FORM)
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                return PlainTextResponse("body too large\n", 413)
        if b"List-Unsubscribe" not in body or b"One-Click" not in body:
            return PlainTextResponse("expected List-Unsubscribe=One-Click (RFC 8058)\n", 400)
        await run_in_threadpool(self._unsubscribe, holder)
        return _page("You are unsubscribed.")

    def _holder(self, token: str) -> Holder | None:
        job_id = job_of_token(token)
        if job_id is None or job_id >= 1 << 63:
            return None
        columns = (jobs.c.id, jobs.c.tenant, jobs.c.bucket, jobs.c.recipient_key)
        with self._database.read() as conn:
            row = conn.execute(select(*columns).where(jobs.c.id == job_id)).first()
        if row is None:
            return None
        holder = Holder(*row)
        return holder if verify_token(self._secret, token, holder) else None

    def _unsubscribe(self, who: Holder) -> None:
        entries = unsubscribed(
            who.recipient_key, who.tenant, self._clock.now(), f"unsubscribe:{who.job_id}"
        )
        touched = [who.recipient_key]
        row = self._event(who)
        with self._projection.adding(touched) as conn:
            changed = store.add(conn, entries)
            told = insert_feedback(conn, [row])
            self._spool.add_mark(who.job_id, Mark.UNSUBSCRIBED, conn)
        if told:
            announce(self._redis, FEEDBACK, [row["id"]])
        if changed:
            announce(self._redis, SUPPRESSION, [changed])

    def _event(self, who: Holder) -> dict[str, Any]:
        """The click as feedback, once per job: it counts in scores, arms and the trace like a relay's."""
        now = self._clock.now()
        event = Feedback(
            f"one-click:{who.job_id}",
            EventType.UNSUBSCRIBED,
            "one-click",
            now,
            job_id=who.job_id,
            tenant=who.tenant,
            cls=BounceClass.NONE,
        )
        return feedback_row(new_ids(1)[0], event, recipient_key=who.recipient_key, now=now)

    def _too_many(self, host: str) -> bool:
        name = keys.replay_guard("unsubscribe", keyed_hash(self._secret, host))
        try:
            with self._redis.pipeline() as pipe:
                pipe.set(name, 0, ex=60, nx=True)
                pipe.incr(name)
                _, count = pipe.execute()
        except RedisError:
            return False  # forging is hopeless anyway (128 bits); this only saves work
        return int(count) > BAD_TOKENS


_FORM = (
    '<p>Do you want to stop receiving these messages?</p><form method="post">'
    '<input type="hidden" name="List-Unsubscribe" value="One-Click">'
    '<button type="submit">Unsubscribe</button></form>'
)


def _page(inner: str, status: int = 200) -> Response:
    body = inner if inner.startswith("<") else f"<p>{html.escape(inner)}</p>"
    return HTMLResponse(
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'><meta name=robots content=noindex>"
        f"<title>Unsubscribe</title><body>{body}</body></html>",
        status,
        {
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": "default-src 'none'; form-action 'self'; frame-ancestors 'none'",
        },
    )
