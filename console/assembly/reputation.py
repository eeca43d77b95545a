"""The reputation process."""

from __future__ import annotations

from contextlib import ExitStack

import redis

from console.assembly.base import spool_of
from console.housekeeping import Housekeeper
from console.threads import Threads
from journal.recorder import Recorder
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.install import master_key
from mailweir.plumbing.policies import PolicyWatch
from mailweir.plumbing.redis import connect
from mailweir.plumbing.settings import Settings
from reputation.manager import Manager
from reputation.source_watch import SourceWatch
from suppression.listener import SuppressionListener


def reputation_process(settings: Settings, clock: Clock, stack: ExitStack) -> Threads:
    """Reputation manager, suppression listener, own-source watch, journal recorder, housekeeping: a
    thread each."""
    database, spool = spool_of(settings, clock, stack)
    database.give_way()
    secret = master_key(settings)

    def client() -> redis.Redis:
        made = connect(settings)
        stack.callback(made.close)
        return made

    watch = PolicyWatch(database, client())
    manager = Manager(client(), database, watch.get, settings.reputation, clock)
    suppression = SuppressionListener(client(), database, secret, clock)
    sources = SourceWatch(settings, database, PolicyWatch(database, client()).get, clock)
    recorder = Recorder(database, clock, settings.spool.keep_jobs)
    housekeeper = Housekeeper(spool, clock, settings.spool)
    return Threads(
        {
            "reputation": manager.run,
            "suppression": suppression.run,
            "own sources": sources.run,
            "journal": recorder.run,
            "housekeeping": housekeeper.run,
        }
    )
