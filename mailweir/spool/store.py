"""The job store: the operations on jobs, each in the module of whoever calls it."""

from __future__ import annotations

from mailweir.contracts.ids import use_node
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import migrate, open_database
from mailweir.plumbing.settings import Settings
from mailweir.spool import statements as sql
from mailweir.spool.doors import Doors
from mailweir.spool.operating import Operating
from mailweir.spool.reading import Reading, Whereabouts
from mailweir.spool.reconciling import Reconciling
from mailweir.spool.records import (
    Backlog,
    Conflict,
    DecisionRow,
    Dispatch,
    ExpiredLease,
    Flow,
    Move,
    Outcome,
    Pick,
    Unstorable,
    Work,
)
from mailweir.spool.routing import Batch, Routing, Window
from mailweir.spool.working import Taking, Turn, Working


class Spool(Doors, Routing, Working, Reconciling, Operating, Reading):
    """The job store over one database. Thread-safe; every write is one short transaction.

    ``clock`` is policy time; leases and publication are measured in real seconds by the database's
    clock. Every operation may raise :class:`mailweir.plumbing.database.DatabaseUnavailable`, which
    is worth another try later."""

    def take_node(self) -> int:
        """A node number for this process' ids that no other running process has (they repeat after
        4,096 starts)."""
        now = self.clock.now()
        return self._write(lambda _, cursor: int(self._rows(cursor, sql.NODE_NEXT, (now,))[0][0]))


def open_spool(settings: Settings) -> Spool:
    """The spool of these settings, its tables brought up to date, and with it this process' node for ids.

    Raises ``DatabaseUnavailable``."""
    database = open_database(settings)
    migrate(database)
    spool = Spool(
        database,
        idempotency_hours=settings.accept.idempotency_hours,
        clock=Clock(settings.clock.origin, settings.clock.rate),
    )
    use_node(spool.take_node())
    return spool


__all__ = [
    "Backlog",
    "Batch",
    "Conflict",
    "DecisionRow",
    "Dispatch",
    "ExpiredLease",
    "Flow",
    "Move",
    "Outcome",
    "Pick",
    "Spool",
    "Taking",
    "Turn",
    "Unstorable",
    "Whereabouts",
    "Window",
    "Work",
    "open_spool",
]
