"""Housekeeping: deletes what has outlived its keeping, a little at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import DatabaseUnavailable
from mailweir.plumbing.settings import SpoolSettings
from mailweir.spool.store import Spool

log = structlog.get_logger(__name__)

LOOK_EVERY = 0.5  # real seconds between two looks whether to stop


class Housekeeper:
    """Prunes the spool in small steps, so that no write waits long behind it."""

    def __init__(self, spool: Spool, clock: Clock, settings: SpoolSettings) -> None:
        self._spool = spool
        self._clock = clock
        self._settings = settings

    def run(self, stop: Callable[[], bool]) -> None:
        """Prune every ``spool.prune_every`` and sweep every ``spool.sweep_every`` real seconds until
        ``stop()``."""
        settings = self._settings
        prune = time.monotonic() + settings.prune_every
        sweep = time.monotonic() + min(settings.prune_every, settings.sweep_every)
        while not stop():
            if time.monotonic() >= sweep:
                sweep = time.monotonic() + settings.sweep_every
                self.sweep()
            if time.monotonic() < prune:
                time.sleep(LOOK_EVERY)
            elif not self.turn():
                prune = time.monotonic() + settings.prune_every

    def turn(self) -> int:
        """One step; how many rows went."""
        settings = self._settings
        try:
            return self._spool.prune(
                self._clock.now(), settings.keep_content, settings.keep_jobs, settings.prune_rows
            )
        except DatabaseUnavailable as error:
            log.warning("pruning waits for the database", why=str(error))
            return 0

    def sweep(self) -> int:
        """Delete the body files no row names; how many."""
        try:
            return self._spool.sweep_bodies()
        except DatabaseUnavailable as error:
            log.warning("body files are not swept", why=str(error))
            return 0
