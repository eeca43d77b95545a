"""The process that listens for SMTP: the submission door and, where a port is set, the bounce listener."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from console.assembly.base import spool_of
from mailweir.plumbing.apikeys import KeyRing
from mailweir.plumbing.beat import Beat
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.redis import connect
from mailweir.plumbing.settings import Settings
from producer.doors.smtp import run
from producer.reception import open_reception
from reputation.intake.opening import bounce_listener


def serve_smtp(
    settings: Settings, clock: Clock, stack: ExitStack, stop: Callable[[], bool]
) -> None:
    """Serve until ``stop()``."""
    database, spool = spool_of(settings, clock, stack)
    acceptor, reception = open_reception(settings, clock, database, spool)
    stack.callback(acceptor.close)
    if settings.feedback.port:
        client = connect(settings)
        stack.callback(client.close)
        bounces = bounce_listener(settings, clock, database, spool, client)
        bounces.start()
        stack.callback(bounces.stop)
    beat = Beat()

    def stopped() -> bool:
        beat.touch()  # asked several times a second from the loop that serves
        return stop()

    run(settings, reception, KeyRing(database), clock, stopped)
