"""``POST /v1/feedback/{provider}/{token}``: webhooks of relays, each tenant at an unguessable path of its own.

401 for what is forged, 400 or 413 for what is no payload, 404 for an unknown provider or path, 503 when the
database is away; 200 only after the commit, with how many events were new.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import prometheus_client
import redis
import structlog
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mailweir.plumbing import keys
from mailweir.plumbing.clock import REAL, Clock
from mailweir.plumbing.database import DatabaseUnavailable
from mailweir.plumbing.secrets import SecretUnavailable
from reputation.intake.certificates import CertificateUnavailable
from reputation.intake.confirmation import BY_HAND, ConfirmationUnavailable
from reputation.intake.providers import UnknownProvider
from reputation.intake.record import Recorder
from reputation.intake.webhook import MAX_BODY, BadPayload, Refused, Taken, TooLarge, handle

REPLAY_SECONDS = 7200
"""How long an id that comes once is remembered: signed times are believed for 5 minutes, SNS's for an hour."""

REFUSED = prometheus_client.Counter(
    "mailweir_feedback_refused", "Webhook calls refused.", ["provider", "why"]
)
_log = structlog.get_logger(__name__)


def path_token(key: bytes, provider: str, tenant: str) -> str:
    """The last part of a tenant's webhook path: its name and 128 bits nobody can guess."""
    name = base64.urlsafe_b64encode(tenant.encode()).decode().rstrip("=")
    return f"{name}.{_mac(key, provider, tenant)}"


def _mac(key: bytes, provider: str, tenant: str) -> str:
    text = f"webhook\0{provider}\0{tenant}".encode()
    return hmac.new(key, text, hashlib.sha256).hexdigest()[:32]


def tenant_of(key: bytes, provider: str, token: str) -> str | None:
    """The tenant a path token belongs to; None for a guessed one."""
    name, _, mac = token[:300].partition(".")
    try:
        tenant = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
    except (binascii.Error, ValueError):
        return None
    wanted = _mac(key, provider, tenant)
    return tenant if hmac.compare_digest(mac.encode("utf-8", "replace"), wanted.encode()) else None


@dataclass(frozen=True)
class IntakeDeps:
    """What the routes need. ``secret_of`` gives the secrets of (provider, tenant), one a line, "" for
    none (every call is refused then, but SNS's, which brings its certificate); it may raise
    ``SecretUnavailable``."""

    recorder: Recorder
    key: bytes
    secret_of: Callable[[str, str], str]
    fetch_certificate: Callable[[str], bytes]
    client: redis.Redis | None = None
    clock: Clock = REAL
    topics: frozenset[str] = field(default_factory=frozenset)
    confirm: Callable[[str], None] | None = None  # of SNS subscriptions; None: an operator does it


class Intake:
    """The one endpoint."""

    def __init__(self, deps: IntakeDeps) -> None:
        self._deps = deps

    async def receive(self, request: Request) -> Response:
        """One call."""
        provider = request.path_params["provider"]
        tenant = tenant_of(self._deps.key, provider, request.path_params["token"])
        if tenant is None:
            return answer(404, "no such path")
        body = await read_body(request)
        if body is None:
            return answer(413, f"more than {MAX_BODY} bytes")
        headers = {name.lower(): value for name, value in request.headers.items()}
        return await run_in_threadpool(self._take, provider, tenant, headers, body)

    def _take(self, provider: str, tenant: str, headers: dict[str, str], body: bytes) -> Response:
        deps = self._deps
        try:
            taken = handle(
                provider,
                headers,
                body,
                secret=deps.secret_of(provider, tenant),
                now=time.time(),
                fetch_certificate=deps.fetch_certificate,
                topics=deps.topics,
            )
            if taken.once and self._seen(provider, taken.once):
                return JSONResponse({"new": 0, "duplicates": len(taken.events), "orphans": 0})
            if taken.subscription is not None:
                return self._subscribe(taken, provider, tenant)
            done = deps.recorder.record(taken.events, body, deps.clock.now(), tenant=tenant)
        except UnknownProvider as error:
            return answer(404, str(error))
        except Refused as error:
            REFUSED.labels(provider, "forged").inc()
            _log.warning("webhook refused", provider=provider, tenant=tenant, why=str(error))
            return answer(401, "not authentic")
        except TooLarge as error:
            return answer(413, str(error))
        except BadPayload as error:
            REFUSED.labels(provider, "payload").inc()
            return answer(400, str(error))
        except (
            DatabaseUnavailable, SecretUnavailable, CertificateUnavailable, ConfirmationUnavailable,
        ) as error:  # fmt: skip
            _log.warning("webhook cannot be taken now", provider=provider, why=str(error))
            return JSONResponse({"error": "try again later"}, 503, {"Retry-After": "30"})
        if taken.once:
            self._remember(provider, taken.once)
        if taken.problems:
            _log.warning(
                "webhook items not understood", provider=provider, count=len(taken.problems)
            )
        return JSONResponse({**done._asdict(), "problems": taken.problems[:20]})

    def _subscribe(self, taken: Taken, provider: str, tenant: str) -> Response:
        """A signed question whether an allowed topic may speak here. Raises ``Refused`` and
        ``ConfirmationUnavailable``."""
        if self._deps.confirm is None:
            _log.warning("SNS subscription", provider=provider, tenant=tenant, how=BY_HAND)
            return JSONResponse({"subscription": "waiting", "how": BY_HAND}, 202)
        self._deps.confirm(taken.subscription or "")
        if taken.once:
            self._remember(provider, taken.once)
        _log.info("SNS subscription confirmed", provider=provider, tenant=tenant)
        return JSONResponse({"subscription": "confirmed"})

    def _seen(self, provider: str, once: str) -> bool:
        """Whether this id came before. Without Redis: no, and the event ids hold the line."""
        if self._deps.client is None:
            return False
        try:
            return bool(self._deps.client.exists(keys.replay_guard(provider, once)))
        except RedisError:
            return False

    def _remember(self, provider: str, once: str) -> None:
        """After the commit, so that a call that failed may come again."""
        if self._deps.client is None:
            return
        try:
            self._deps.client.set(keys.replay_guard(provider, once), b"1", ex=REPLAY_SECONDS)
        except RedisError as error:
            _log.info("replay guard not set", why=type(error).__name__)


async def read_body(request: Request) -> bytes | None:
    """The body, or None as soon as it is too long."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def answer(status: int, why: str) -> Response:
    """A refusal in JSON."""
    return JSONResponse({"error": why}, status)


def routes(deps: IntakeDeps) -> list[Route]:
    """The routes for the web process."""
    intake = Intake(deps)
    return [Route("/v1/feedback/{provider}/{token}", intake.receive, methods=["POST"])]
