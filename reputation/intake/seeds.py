"""Seed-inbox results by webhook (S56): a placement service posts where its seed mails were found.

``POST /v1/feedback/seeds/TOKEN`` with Basic or Bearer authentication, as such services offer it; the body is
what ``mailweir reputation seeds FILE`` takes: JSON (a list, or an object with "results") or CSV of source,
provider and folder. The newest test of a source at a provider replaces the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mailweir.plumbing.clock import REAL, Clock
from mailweir.plumbing.database import Database, DatabaseUnavailable
from mailweir.plumbing.secrets import SecretUnavailable
from reputation.intake.http import REFUSED, answer, read_body, tenant_of
from reputation.intake.providers.base import Call, Refused, check_shared
from reputation.intake.webhook import MAX_BODY
from reputation.signals import BadResults, keep_placement, read_results

NAME = "seeds"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SeedDeps:
    """``key`` and ``secret_of`` as :class:`reputation.intake.http.IntakeDeps` has them."""

    database: Database
    key: bytes
    secret_of: Callable[[str, str], str]
    clock: Clock = REAL


class SeedDoor:
    """The one endpoint."""

    def __init__(self, deps: SeedDeps) -> None:
        self._deps = deps

    async def receive(self, request: Request) -> Response:
        """One test's results."""
        tenant = tenant_of(self._deps.key, NAME, request.path_params["token"])
        if tenant is None:
            return answer(404, "no such path")
        body = await read_body(request)
        if body is None:
            return answer(413, f"more than {MAX_BODY} bytes")
        headers = {name.lower(): value for name, value in request.headers.items()}
        return await run_in_threadpool(self._take, tenant, headers, body)

    def _take(self, tenant: str, headers: dict[str, str], body: bytes) -> Response:
        deps = self._deps
        try:
            lines = deps.secret_of(NAME, tenant).splitlines()
            secrets = tuple(line.strip() for line in lines if line.strip())
            check_shared(Call(headers, body, secrets, time.time()))
            results = read_results(body.decode("utf-8"))
            shares = keep_placement(deps.database, results, deps.clock.now())
        except Refused as error:
            REFUSED.labels(NAME, "forged").inc()
            _log.warning("seed results refused", tenant=tenant, why=str(error))
            return answer(401, "not authentic")
        except (BadResults, UnicodeDecodeError) as error:
            REFUSED.labels(NAME, "payload").inc()
            return answer(400, str(error)[:500])
        except (DatabaseUnavailable, SecretUnavailable) as error:
            _log.warning("seed results cannot be taken now", why=str(error))
            return JSONResponse({"error": "try again later"}, 503, {"Retry-After": "30"})
        return JSONResponse(
            {
                "inbox": [
                    {"source": source, "provider": provider, "share": round(share, 4)}
                    for (source, provider), share in sorted(shares.items())
                ]
            }
        )


def routes(deps: SeedDeps) -> list[Route]:
    """The route; it must stand before the relays', whose path it is a case of."""
    return [Route(f"/v1/feedback/{NAME}/{{token}}", SeedDoor(deps).receive, methods=["POST"])]
