"""The web process: submission API, feedback webhooks, unsubscribe, operator API, console pages.

Each part brings its own routes; this file only mounts them, answers health questions and serves
metrics. Liveness says the process runs; readiness that a submission would be accepted now.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import prometheus_client
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from mailweir.plumbing.beat import EVERY, Beat
from mailweir.plumbing.database import Database, DatabaseUnavailable


@dataclass(frozen=True)
class Part:
    """Routes of one room, and what it wants done at start and end."""

    routes: list[BaseRoute]
    on_stop: Callable[[], None] | None = None


def build(parts: list[Part], database: Database) -> Starlette:
    """The application."""

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(_: Request) -> Response:
        def probe() -> None:
            with database.read() as conn:
                conn.exec_driver_sql("SELECT 1 FROM jobs LIMIT 1")

        try:
            await run_in_threadpool(probe)
        except DatabaseUnavailable as error:
            return JSONResponse(
                {"status": "unavailable", "spool": str(error)}, 503, {"Retry-After": "5"}
            )
        return JSONResponse({"status": "ready"})

    async def metrics(_: Request) -> Response:
        text = await run_in_threadpool(prometheus_client.generate_latest)  # some ask SQL and Redis
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        beat = Beat()

        async def beating() -> None:
            while True:
                beat.touch()
                await asyncio.sleep(EVERY)

        task = asyncio.create_task(beating())
        try:
            yield
        finally:
            task.cancel()
            for part in parts:
                if part.on_stop is not None:
                    await run_in_threadpool(part.on_stop)

    routes: list[BaseRoute] = [
        Route("/health/live", live),
        Route("/health/ready", ready),
        Route("/metrics", metrics),
    ]
    for part in parts:
        routes += part.routes
    return Starlette(routes=routes, lifespan=lifespan)
