"""The reputation process."""

from __future__ import annotations

from contextlib import ExitStack

import redis

from console.assembly.base import spool_of
from console.threads import Threads
from journal.recorder import Recorder
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.install import master_key
from mailweir.plumbing.redis import connect
from mailweir.plumbing.settings import Settings
from suppression.listener import SuppressionListener


def reputation_process(settings: Settings, clock: Clock, stack: ExitStack) -> Threads:
    """Reputation manager, suppression listener and journal recorder, each in a thread of its own."""
    database, _ = spool_of(settings, clock, stack)
    secret = master_key(settings)

    def client() -> redis.Redis:
        made = connect(settings)
        stack.callback(made.close)
        return made

    suppression = SuppressionListener(client(), database, secret, clock)
    recorder = Recorder(database, clock)
    return Threads({"suppression": suppression.run, "journal": recorder.run})
