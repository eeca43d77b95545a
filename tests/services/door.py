"""A real HTTP door on a free loopback port over a private SQLite spool."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from mailweir.plumbing import apikeys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database, migrate, open_database
from mailweir.plumbing.settings import Settings, load
from mailweir.spool.store import Spool
from producer.accept import Acceptor, Reception
from producer.doors.http import HttpDeps, routes
from producer.reception import open_reception
from producer.templates import Templates


@dataclass
class Door:
    """What a test needs of it."""

    url: str
    key: str  # tenant "default", every scope
    settings: Settings
    database: Database
    spool: Spool
    acceptor: Acceptor
    reception: Reception
    keys: apikeys.KeyRing
    app: Starlette


@contextmanager
def open_door(data: Path, **overrides: object) -> Iterator[Door]:
    """The door without a server (``app`` for an ASGI transport)."""
    settings = load(data, **overrides)
    database = open_database(settings)
    migrate(database)
    clock = Clock()
    spool = Spool(database, clock=clock)
    key = apikeys.create(
        database, tenant="default", scopes=("send", "read", "route", "admin"), now=clock.now()
    )
    acceptor, reception = open_reception(settings, clock, database, spool)
    ring = apikeys.KeyRing(database)
    deps = HttpDeps(settings, clock, reception, Templates(database), spool, ring)
    app = Starlette(routes=routes(deps))
    try:
        yield Door("", key, settings, database, spool, acceptor, reception, ring, app)
    finally:
        acceptor.close()
        database.close()


@contextmanager
def running_door(data: Path, **overrides: object) -> Iterator[Door]:
    """The door behind uvicorn, in a thread, ready when the block begins."""
    with open_door(data, **overrides) as door:
        config = uvicorn.Config(door.app, host="127.0.0.1", port=0, log_level="warning")
        started = threading.Event()

        class _Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                started.set()

        server = _Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        assert started.wait(10), "uvicorn did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        door.url = f"http://127.0.0.1:{port}"
        try:
            yield door
        finally:
            server.should_exit = True
            thread.join(10)
