"""How a door rings at the routers of transactional mail: jobs were committed, look now.

Without it a router would ask the database fifty times a second, at rest as well. The tables are the
truth: a ring that Redis does not take costs a mail the rest of a router's pause, nothing else.
"""

from __future__ import annotations

import threading
import time

import prometheus_client
import redis
import structlog
from redis.client import PubSub
from redis.exceptions import RedisError

from mailweir.plumbing import keys

AGAIN = 1.0
"""Real seconds until a Redis that failed is tried again."""
QUIET = 0.02
"""Real seconds between two rings of a process at least: under load nobody rests longer."""

log = structlog.get_logger(__name__)
_UNHEARD = prometheus_client.Counter(
    "mailweir_rings_lost", "Rings of a door at the routers that Redis did not take."
)


class Bell:
    """The door's side, of one process. It owns ``client``."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._rung = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bell", daemon=True)
        self._thread.start()

    def ring(self) -> None:
        """Returns at once, whatever Redis does; rings that come while one is under way are one."""
        self._rung.set()

    def close(self) -> None:
        """End the thread; a ring of just now may be lost."""
        self._closed.set()
        self._rung.set()
        self._thread.join(AGAIN)
        self._client.close()

    def _run(self) -> None:
        failed = False
        while True:
            self._rung.wait()
            self._rung.clear()
            if self._closed.is_set():
                return
            try:
                self._client.publish(keys.RINGS, b"")
            except RedisError as error:
                _UNHEARD.inc()
                if not failed and not self._closed.is_set():
                    log.warning("doors cannot ring", error=type(error).__name__)
                failed = True
                self._closed.wait(AGAIN)
            else:
                failed = False
                self._closed.wait(QUIET)


class Ear:
    """The router's side: how long its loop rests. Belongs to one thread; ``client`` stays the caller's.

    ``rung``: real seconds until it looks although nobody rang; ``alone``: the same while Redis refuses
    it, and the least it rests, so that a stream of rings is worked off in batches."""

    def __init__(self, client: redis.Redis, *, rung: float, alone: float) -> None:
        self._client = client
        self._rung = rung
        self._alone = alone
        self._line: PubSub | None = None
        self._again = 0.0
        self._said = False  # that it hears nothing: once, not every second
        self._listen()

    def rest(self, due: bool) -> None:
        """Return when it is time to look. With jobs ``due`` no ring is waited for."""
        if due:
            time.sleep(self._alone)
            return
        began = time.monotonic()
        if self._line is None and time.monotonic() >= self._again:
            self._listen()
        if self._line is not None:
            self._hear(self._line)
        left = began + self._alone - time.monotonic()
        if left > 0:
            time.sleep(left)

    def close(self) -> None:
        """Hear no more."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _listen(self) -> None:
        line = PubSub(self._client.connection_pool, ignore_subscribe_messages=True)
        try:
            line.subscribe(keys.RINGS)
        except RedisError as error:
            line.close()
            self._failed(error)
        else:
            self._line = line

    def _hear(self, line: PubSub) -> None:
        end = time.monotonic() + self._rung
        try:
            while (left := end - time.monotonic()) > 0:
                if line.get_message(timeout=left) is not None:
                    while line.get_message() is not None:
                        pass  # of one commit after the other: one look finds all their jobs
                    break
        except RedisError as error:
            self.close()
            self._failed(error)
        else:
            self._said = False

    def _failed(self, error: RedisError) -> None:
        if not self._said:
            log.warning("doors cannot be heard, looking more often", error=type(error).__name__)
        self._said = True
        self._again = time.monotonic() + AGAIN
