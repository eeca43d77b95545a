"""The web process."""

from __future__ import annotations

import secrets
from contextlib import ExitStack

import prometheus_client

from console.assembly.base import spool_of
from console.metrics import HouseMetrics
from console.operate import Operator
from console.pages import Pages
from console.reading import Reader
from console.session import Sessions
from console.web import Part
from mailweir.plumbing.apikeys import KeyRing
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database
from mailweir.plumbing.install import derive, make_once, master_key
from mailweir.plumbing.redis import connect
from mailweir.plumbing.settings import Settings
from producer.doors.http import HttpDeps
from producer.doors.http import routes as submission_routes
from producer.reception import open_reception
from producer.templates import Templates
from reputation.intake.opening import webhook_routes
from suppression.unsubscribe import routes as unsubscribe_routes


def web_parts(settings: Settings, clock: Clock, stack: ExitStack) -> tuple[list[Part], Database]:
    """What the web process serves."""
    database, spool = spool_of(settings, clock, stack)
    client = connect(settings)
    stack.callback(client.close)
    secret = master_key(settings)
    acceptor, reception = open_reception(settings, clock, database, spool)
    reader = Reader(settings, clock, database)
    stack.callback(reader.close)
    house = HouseMetrics(reader)
    prometheus_client.REGISTRY.register(house)
    stack.callback(prometheus_client.REGISTRY.unregister, house)
    password = make_once(settings.data / "console.password", secrets.token_urlsafe(18))
    door = HttpDeps(settings, clock, reception, Templates(database), spool, KeyRing(database))
    pages = Pages(reader, Operator(database, clock), Sessions(derive(secret, "console"), password))
    return [
        Part([*submission_routes(door)], acceptor.close),
        Part([*webhook_routes(settings, clock, database, spool, client)]),
        Part(unsubscribe_routes(client, database, secret, clock)),
        Part(pages.routes()),
    ], database
