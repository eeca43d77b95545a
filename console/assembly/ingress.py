"""The ingress consumer's process."""

from __future__ import annotations

from contextlib import ExitStack

from console.assembly.base import spool_of
from mailweir.plumbing.apikeys import KeyRing
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.settings import Settings
from producer.published import PublishedDoor
from producer.reception import open_reception


def ingress_door(settings: Settings, clock: Clock, stack: ExitStack) -> PublishedDoor:
    """What the ingress consumer commits with."""
    database, spool = spool_of(settings, clock, stack)
    acceptor, reception = open_reception(settings, clock, database, spool)
    stack.callback(acceptor.close)
    return PublishedDoor(reception, KeyRing(database), database, clock)
