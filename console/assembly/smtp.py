"""The SMTP door's process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from console.assembly.base import spool_of
from mailweir.plumbing.apikeys import KeyRing
from mailweir.plumbing.beat import Beat
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.settings import Settings
from producer.doors.smtp import run
from producer.reception import open_reception


def serve_smtp(
    settings: Settings, clock: Clock, stack: ExitStack, stop: Callable[[], bool]
) -> None:
    """Serve until ``stop()``."""
    database, spool = spool_of(settings, clock, stack)
    acceptor, reception = open_reception(settings, clock, database, spool)
    stack.callback(acceptor.close)
    beat = Beat()

    def stopped() -> bool:
        beat.touch()  # asked several times a second from the loop that serves
        return stop()

    run(settings, reception, KeyRing(database), clock, stopped)
