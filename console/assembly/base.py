"""What every process that touches jobs has."""

from __future__ import annotations

from contextlib import ExitStack

from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database, open_database
from mailweir.plumbing.settings import Settings
from mailweir.spool.store import Spool


def spool_of(settings: Settings, clock: Clock, stack: ExitStack) -> tuple[Database, Spool]:
    """Database and job store, closed with the stack."""
    database = open_database(settings)
    stack.callback(database.close)
    return database, Spool(
        database, idempotency_hours=settings.accept.idempotency_hours, clock=clock
    )
