"""Turns attempts and feedback into suppressions within a second, and keeps the projection trusted."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress

import msgspec
import prometheus_client
import redis
import structlog
from redis.exceptions import RedisError
from sqlalchemy import Connection, select

from mailweir.mail.address import InvalidAddress, canonical
from mailweir.plumbing import keys
from mailweir.plumbing.clock import REAL, Clock
from mailweir.plumbing.database import Database, DatabaseUnavailable
from mailweir.plumbing.events import SUPPRESSION, AttemptRow, FeedbackRow, Listener, announce, put
from mailweir.spool.schema import attempts, counters, jobs
from suppression import mass, store, streaks
from suppression.entries import BadEntry, Entry, Reason, Scope
from suppression.projection import Projection
from suppression.rules import NO_USER, Change, Subject, asked, fed_back

NAME = "suppression"
COMMIT_EVERY = 5.0  # real seconds the position may lag when nothing was derived
RENEW_EVERY = 1.0
STEP = 100
"""Entries of one write transaction."""

TEND_EVERY = 30.0  # confirming pending entries, deleting ended ones
_GUARDS = "suppression:guards"

_ADDED = prometheus_client.Counter("mailweir_suppressed", "Suppressions added.", ["reason"])
_UNREAD = prometheus_client.Counter(
    "mailweir_suppression_unread", "Rows that asked for a suppression nobody understood."
)
_HOLDING = prometheus_client.Gauge(
    "mailweir_mass_bounce_guard",
    "1 while hard bounces of a provider are kept pending.",
    ["provider"],
)
_log = structlog.get_logger(__name__)


class SuppressionListener:
    """One loop. Any number may run: what they write is idempotent, though one is enough."""

    def __init__(
        self, client: redis.Redis, database: Database, secret: bytes, clock: Clock = REAL
    ) -> None:
        self._redis = client
        self._database = database
        self._clock = clock
        self._projection = Projection(client, database, secret)
        self._listener = Listener(client, database, NAME)
        self._guards = self._load_guards()
        self._expired_since = clock.now() - streaks.DAY
        self._building: Generator[int, None, int | None] | None = None
        self._next_renew = self._next_commit = self._next_tend = 0.0

    def run(self, stop: Callable[[], bool], beat: Callable[[], None] = lambda: None) -> None:
        """Work until ``stop()``; waits out a database that is away."""
        while not stop():
            beat()
            try:
                self.step(0.2)
            except DatabaseUnavailable as error:
                _log.warning("suppression waits for the database", error=str(error))
                time.sleep(0.5)

    def step(self, wait: float = 0.0) -> int:
        """One look: renew the projection, apply what came (waiting for it up to ``wait`` real
        seconds); how many rows came. Raises DatabaseUnavailable; the rows come again then."""
        self._renew()
        news = self._listener.poll(0.0 if self._building is not None else wait)
        try:
            if len(news):
                self._apply(news.attempts, news.feedback)
            if time.monotonic() >= self._next_tend:
                self._tend()
        except DatabaseUnavailable:
            self._listener.forget()
            raise
        return len(news)

    def _renew(self) -> None:
        """Keep the projection trusted; one page of it while it is built, so that news never waits."""
        if self._building is None and time.monotonic() < self._next_renew:
            return
        self._next_renew = time.monotonic() + RENEW_EVERY
        try:
            if self._building is None:
                if self._projection.renew():
                    return
                self._building = self._projection.build()
            next(self._building)
        except StopIteration as done:
            self._building = None
            if done.value is not None:
                _log.info("suppression list projected", keys=done.value)
        except (RedisError, DatabaseUnavailable) as error:
            self._building = None
            _log.warning("suppression projection waits", error=str(error))

    def _apply(self, tries: list[AttemptRow], events: list[FeedbackRow]) -> None:
        tripped = self._note(tries)
        wishes = [row for row in tries if row.suppress]
        who = self._subjects({r.job_id for r in wishes} | {r.job_id for r in events if r.job_id})
        changes: list[Change] = []
        for row in wishes:
            subject = who.get(row.job_id)
            if subject is None or row.suppress is None:
                continue
            try:
                added = asked(row.suppress, row.category, subject, row.at, str(row.id))
            except BadEntry as error:
                _UNREAD.inc()
                _log.error("suppression wish not understood", attempt=row.id, error=str(error))
                continue
            pending = self._holds(row.provider) and row.category in NO_USER
            changes.append(
                Change(tuple(msgspec.structs.replace(e, pending=pending) for e in added))
            )
        changes.append(Change(tuple(self._full(tries))))
        for event in events:
            subject = self._subject_of(event, who)
            if subject is not None:
                changes.append(fed_back(event.event, subject, event.event.occurred_at))
        changes = [change for change in changes if change.add or change.remove]
        if not changes and not tripped and time.monotonic() < self._next_commit:
            return
        self._next_commit = time.monotonic() + COMMIT_EVERY
        self._write(changes, tripped)

    def _full(self, tries: list[AttemptRow]) -> Iterator[Entry]:
        """Entries for mailboxes that have been full for a week."""
        full = {row.job_id: row for row in tries if row.category == "mailbox_full"}
        a = attempts.c
        for job_id, who in self._subjects(full).items():
            query = (
                select(a.at, a.outcome, a.category, a.blame)
                .join(jobs, jobs.c.id == a.job_id)
                .where(jobs.c.recipient_key == who.recipient)
                .order_by(a.at.desc())
                .limit(streaks.LOOK_BACK)
            )
            with self._database.read() as conn:
                history = [streaks.Try(*row) for row in conn.execute(query)]
            if job_id is not None and streaks.stays_full(history):
                row = full[job_id]
                yield _for_a_month(who.recipient, row.at, str(row.id))

    def _silent(self, conn: Connection) -> list[Entry]:
        """Entries for addresses whose jobs have expired one after the other, seen since the last look."""
        now, c = self._clock.now(), jobs.c
        since = self._expired_since - 60.0
        self._expired_since = now
        query = select(c.recipient_key).where(c.state == "expired", c.ended_at >= since).distinct()
        found = []
        for recipient in conn.execute(query).scalars().all():
            ended = (
                select(c.ended_at, c.state, c.attempts)
                .where(c.recipient_key == recipient, c.ended_at.is_not(None))
                .order_by(c.ended_at.desc())
                .limit(streaks.LOOK_BACK)
            )
            history = [streaks.Ended(*row) for row in conn.execute(ended)]
            if streaks.stays_silent(history):
                found.append(_for_a_month(recipient, history[0].at, "expired"))
        return found

    def _write(self, changes: list[Change], tripped: list[str]) -> None:
        entries = [entry for change in changes for entry in change.add]
        done: list[Entry] = []
        removals = [removal for change in changes for removal in change.remove]
        while len(entries) - len(done) > STEP:  # others wait for the writers' lock
            some = entries[len(done) : len(done) + STEP]
            with self._projection.adding([entry.key for entry in some]) as conn:
                store.add(conn, some)
            done += some
        rest = entries[len(done) :]
        touched = [entry.key for entry in rest]
        with self._projection.adding(touched) as conn:
            if rest:
                store.add(conn, rest)
            if tripped:
                touched += self._hold_back(conn, tripped)
                self._save_guards(conn)
            soft = self._existing(conn, removals)
            if not soft:
                self._listener.commit(conn)
        if soft:
            cleared = [key for key, _, _ in soft]
            with self._projection.removing(cleared) as conn:
                for key, tenant, reasons in soft:
                    store.remove(conn, [key], tenant=tenant, reasons=reasons)
                self._listener.commit(conn)
            touched += cleared
        for entry in entries:
            _ADDED.labels(entry.reason).inc()
        if touched or done:
            announce(self._redis, SUPPRESSION, [len(touched) + len(done)])

    def _existing(
        self, conn: Connection, removals: Sequence[tuple[str, str | None, Sequence[Reason]]]
    ) -> list[tuple[str, str | None, Sequence[Reason]]]:
        """Removals that would find something: most delivered events clear nothing."""
        there = store.lookup(conn, sorted({key for key, _, _ in removals}))
        return [
            (key, tenant, reasons)
            for key, tenant, reasons in removals
            if any(entry.reason in reasons for entry in there.get(key, ()))
        ]

    def _note(self, tries: list[AttemptRow]) -> list[str]:
        """Feed the mass-bounce guard; providers whose guard has just begun to hold."""
        tripped = []
        for row in sorted(tries, key=lambda row: row.at):
            guard = self._guards.setdefault(row.provider, mass.ProviderGuard())
            held = guard.holds(row.at)
            guard.note(row.at, row.category in NO_USER and bool(row.suppress))
            if guard.holds(row.at) and not held:
                tripped.append(row.provider)
                _log.error("mass bounce: suppressions are kept pending", provider=row.provider)
        for provider in {row.provider for row in tries}:
            _HOLDING.labels(provider).set(self._holds(provider))
        return tripped

    def _holds(self, provider: str) -> bool:
        guard = self._guards.get(provider)
        return guard is not None and guard.holds(self._clock.now())

    def _hold_back(self, conn: Connection, providers: list[str]) -> list[str]:
        """Make pending what the guard's window has suppressed at these providers before it tripped."""
        since = self._clock.now() - mass.WINDOW
        query = (
            select(jobs.c.recipient_key)
            .join(attempts, attempts.c.job_id == jobs.c.id)
            .where(attempts.c.at >= since, attempts.c.provider.in_(providers))
            .where(attempts.c.category.in_(sorted(NO_USER)), attempts.c.suppress.is_not(None))
        )
        return store.hold(conn, list(conn.execute(query).scalars()), since=since)

    def _subjects(self, job_ids: Iterable[int | None]) -> dict[int | None, Subject]:
        wanted = [job_id for job_id in job_ids if job_id is not None]
        found: dict[int | None, Subject] = {}
        columns = (jobs.c.id, jobs.c.recipient_key, jobs.c.mail_from, jobs.c.tenant)
        for start in range(0, len(wanted), 500):
            with self._database.read() as conn:
                some = select(*columns).where(jobs.c.id.in_(wanted[start : start + 500]))
                found |= {
                    r.id: Subject(r.recipient_key, r.mail_from, r.tenant)
                    for r in conn.execute(some)
                }
        return found

    def _subject_of(self, row: FeedbackRow, who: dict[int | None, Subject]) -> Subject | None:
        """Our own record of the job wins over what the event says; None when nobody can be named."""
        subject = who.get(row.job_id)
        if subject is not None:
            return subject
        address = row.recipient_key or row.event.recipient
        if not address:
            return None
        try:
            return Subject(canonical(address), "", row.tenant or "")
        except InvalidAddress:
            _UNREAD.inc()
            return None

    def _tend(self) -> None:
        """Confirm what was pending for a day, delete what has ended."""
        self._next_tend = time.monotonic() + TEND_EVERY
        now = self._clock.now()
        touched: list[str] = []
        with self._projection.adding(touched) as conn:
            touched += store.release(conn, None, confirm=True, before=now - mass.CONFIRM_AFTER)
            silent = self._silent(conn)
            store.add(conn, silent)
            touched += [entry.key for entry in silent]
            store.prune(conn, now)
            self._save_guards(conn)
            self._listener.commit(conn)

    def _save_guards(self, conn: Connection) -> None:
        body = msgspec.json.encode(self._guards).decode()
        put(conn, counters, "key", _GUARDS, body=body, updated_at=self._clock.now())
        with suppress(RedisError):  # shown in the console; the table has it too
            for provider, guard in self._guards.items():
                name = keys.BOUNCE_GUARD.format(provider=provider)
                if guard.holds(self._clock.now()):
                    left = self._clock.real(guard.until - self._clock.now())
                    self._redis.set(name, repr(guard.until), px=max(1, int(left * 1000)))

    def _load_guards(self) -> dict[str, mass.ProviderGuard]:
        with self._database.read() as conn:
            body = conn.execute(select(counters.c.body).where(counters.c.key == _GUARDS)).scalar()
        if body is None:
            return {}
        return msgspec.json.decode(body, type=dict[str, mass.ProviderGuard])


def _for_a_month(recipient: str, at: float, event: str) -> Entry:
    until = at + streaks.SUPPRESSED
    return Entry(
        recipient, Scope.GLOBAL, Reason.SOFT_BOUNCE, at, expires_at=until, source_event=event
    )
