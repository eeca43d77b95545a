"""The reputation manager: one leads, the others stand by; rows in, routing snapshots out.

Whatever happens to it, the last snapshot stays in force: caps hold, weights freeze, nothing is
promoted. A new leader goes on from the saved book and its position, and counts nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import prometheus_client
import redis
import structlog
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from mailweir.contracts.policy import Policy
from mailweir.contracts.snapshot import PathState, Snapshot
from mailweir.mail.providers import default_providers
from mailweir.plumbing import keys
from mailweir.plumbing.clock import REAL, Clock
from mailweir.plumbing.database import Database, DatabaseUnavailable
from mailweir.plumbing.events import Listener
from mailweir.plumbing.policies import NoPolicy
from mailweir.plumbing.settings import ReputationSettings
from mailweir.spool.schema import overrides
from reputation import history, publisher
from reputation.listener import fold
from reputation.policy.book import Book

NAME = "reputation"
SAVE_EVERY = 5.0  # real seconds
REASONS_EVERY = 60.0  # real seconds after which changed reasons alone are published
SIGNALS_EVERY = 5.0
PRUNE_EVERY = 60.0
FOR_EVER = 253_402_300_799.0  # the year 9999: an override without end

_FOLDED = prometheus_client.Counter("mailweir_reputation_folded", "Attempts and events counted.")
_LAG = prometheus_client.Gauge(
    "mailweir_reputation_lag_seconds", "Age of the newest attempt or event counted; 0: none waits."
)
_LEADS = prometheus_client.Gauge("mailweir_reputation_leader", "1 while this process leads.")
_PUBLISHED = prometheus_client.Gauge(
    "mailweir_snapshot_published_at", "Real time of the last look."
)
_SCORE = prometheus_client.Gauge(
    "mailweir_path_score", "Score of a path.", ["source", "provider", "bucket"]
)
_STATE = prometheus_client.Gauge(
    "mailweir_path_out",
    "1 while a path is suspended or on probation.",
    ["source", "provider", "bucket"],
)
_SLOWED = prometheus_client.Gauge(
    "mailweir_path_slowed", "1 while a path is slowed.", ["source", "provider", "bucket"]
)
_TROUBLE = prometheus_client.Gauge(
    "mailweir_provider_in_trouble",
    "1 while the same symptom on all own sources is held to be the provider's.",
    ["provider"],
)
_log = structlog.get_logger(__name__)


def _forget() -> None:
    """Paths and lag are the leader's to tell: what this process said of them may no longer be so."""
    for metric in (_SCORE, _STATE, _SLOWED, _TROUBLE):
        metric.clear()
    _LAG.set(0.0)


class Manager:
    """One process' part: standby until it holds the lease, then leader until it loses it.

    ``policy`` gives the policy in force; it is asked at every look.
    """

    def __init__(
        self,
        client: redis.Redis,
        database: Database,
        policy: Callable[[], Policy],
        settings: ReputationSettings,
        clock: Clock = REAL,
    ) -> None:
        self._redis = client
        self._database = database
        self._policy = policy
        self._clock = clock
        self._settings = settings
        self._leadership = publisher.Leadership(client, self._settings.lease)
        self._leads = False
        self._next_lease = 0.0
        self._published: Snapshot | None = None
        self._next_look = self._next_save = self._next_signals = 0.0
        self._next_prune = self._next_reasons = 0.0

    def run(self, stop: Callable[[], bool], beat: Callable[[], None] = lambda: None) -> None:
        """Work until ``stop()``, then save and hand over."""
        while not stop():
            beat()
            try:
                self.step(self._settings.fold_every)
            except (DatabaseUnavailable, NoPolicy) as error:
                _log.warning("reputation waits", error=str(error))
                self._leads = False  # the book is read again: what was not saved is folded again
                time.sleep(0.5)
        self.stop()

    def stop(self) -> None:
        """Save and give up the lease."""
        if self._leads:
            try:
                self._save()
            except (DatabaseUnavailable, publisher.NotLeader) as error:
                _log.warning("reputation could not save", error=str(error))
        self._leads = False
        self._leadership.release()

    def step(self, wait: float) -> int:
        """One look: fold what came (waiting up to ``wait`` real seconds), publish when it is time; how
        many rows. A standby only asks for the lease. Raises DatabaseUnavailable."""
        now = time.monotonic()
        if now >= self._next_lease:
            self._next_lease = now + self._settings.lease / 4
            holds = self._leadership.hold()
            if holds and not self._leads:
                self._take_over()
            elif holds and self._published is not None:
                self._restore_redis(self._published)
            if self._leads and not holds:
                _forget()
            self._leads = holds
            _LEADS.set(holds)
        if not self._leads:
            time.sleep(wait)
            return 0
        news = self._listener.poll(wait)
        if len(news):
            fold(self.book, news, self._database)
            _FOLDED.inc(len(news))
        newest = [row.at for row in news.attempts] + [row.received_at for row in news.feedback]
        _LAG.set(max(0.0, self._clock.now() - max(newest)) if newest else 0.0)
        now = time.monotonic()
        try:
            if now >= self._next_look:
                self._next_look = now + self._settings.publish_every
                self._look()
            if now >= self._next_save:
                self._save()
        except publisher.NotLeader as error:
            _log.warning("reputation does not lead any more", why=str(error))
            self._leads, self._next_lease = False, 0.0
            _forget()
        return len(news)

    def _take_over(self) -> None:
        """Become leader: read the saved book and go on from its position."""
        self.book = Book(self._policy(), default_providers())
        self._listener = Listener(self._redis, self._database, NAME)
        history.restore(self._database, self.book)
        with self._database.read() as conn:
            self._published = publisher.last(conn)
            self._version = publisher.next_version(conn)
        if self._published is not None:
            self._restore_redis(self._published)
        self._next_look = self._next_save = self._next_signals = 0.0
        self._next_prune = self._next_reasons = 0.0
        _log.info("reputation leads", paths=len(self.book.paths), version=self._version)

    def _restore_redis(self, snapshot: Snapshot) -> None:
        """The last snapshot again, where Redis has lost it."""
        try:
            if self._redis.get(keys.SNAPSHOT_VERSION) != str(snapshot.version).encode():
                self._leadership.publish(snapshot)
        except (publisher.NotLeader, RedisError) as error:
            _log.warning("snapshot not restored", why=str(error))

    def _look(self) -> None:
        now = self._clock.now()
        policy = self._policy()
        if policy is not self.book.policy:
            self.book.set_policy(policy)
        real = time.monotonic()
        if real >= self._next_signals:
            self._next_signals = real + SIGNALS_EVERY
            history.refresh_signals(self._database, self.book)
        self.book.look(now)
        for provider, watch in self.book.watches.items():
            _TROUBLE.labels(provider).set(bool(watch.sick))
        paused = self._paused(now)
        snapshot = publisher.fitted(
            Snapshot(self._version, now, policy.version, self.book.publish(now, paused), paused)
        )
        paths = snapshot.paths
        _PUBLISHED.set(time.time())
        if not self._changed(paths, paused, policy.version, real):
            return
        self._keep(snapshot)
        self._leadership.publish(snapshot)
        self._published = snapshot
        self._version += 1
        self._next_reasons = real + REASONS_EVERY
        for name, state in paths.items():
            labels = name.split("|")
            _SCORE.labels(*labels).set(state.score)
            _STATE.labels(*labels).set(state.state in ("suspended", "probation"))
            _SLOWED.labels(*labels).set(state.state == "slowed")

    def _changed(
        self, paths: dict[str, PathState], paused: dict[str, float], policy: int, real: float
    ) -> bool:
        """Whether something a router decides by has changed, or reasons have for a while."""
        old = self._published
        if old is None or old.paused != paused or old.policy_version != policy:
            return True
        if old.paths == paths:
            return False
        if real >= self._next_reasons or old.paths.keys() != paths.keys():
            return True
        return any(_bare(old.paths[name]) != _bare(state) for name, state in paths.items())

    def _paused(self, now: float) -> dict[str, float]:
        query = select(overrides.c.subject, overrides.c.until, overrides.c.action)
        with self._database.read() as conn:
            rows = conn.execute(query).all()
        found = {
            r.subject: FOR_EVER if r.until is None else r.until
            for r in rows
            if r.action in ("pause", "drain")
        }
        return {subject: until for subject, until in found.items() if until > now}

    def _keep(self, snapshot: Snapshot) -> None:
        """The snapshot in SQL before it is in force, so that every decision can be explained."""
        real = time.monotonic()
        try:
            with self._database.write() as conn:
                publisher.store(conn, snapshot)
                if real >= self._next_prune:
                    self._next_prune = real + PRUNE_EVERY
                    publisher.prune(conn, snapshot.created_at)
        except IntegrityError as error:
            raise publisher.NotLeader("another leader has published this version") from error

    def _save(self) -> None:
        """The book and the position of what it has counted, in one transaction."""
        if not self._leadership.hold():
            raise publisher.NotLeader("the lease ran out")
        with self._database.write() as conn:
            history.save(conn, self.book, self._clock.now())
            self._listener.commit(conn)
        history.saved(self.book)
        self._next_save = time.monotonic() + SAVE_EVERY


def _bare(state: PathState) -> PathState:
    return msgspec.structs.replace(state, reasons=(), confidence=0.0)
