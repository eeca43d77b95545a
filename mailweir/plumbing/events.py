"""How news of a committed attempt or feedback travels: the tables are the truth, a stream carries ids.

Whoever commits rows announces their ids; a :class:`Listener` reads the rows. The stream may lose an
announcement (Redis away, flushed, trimmed), so a listener also sweeps the tables from its position
less :data:`OVERLAP`: ids are ordered by time, but a row with a smaller id may be committed later. Every
row is given once: a listener remembers the ids of the overlap, and stores them with its position.
"""

from __future__ import annotations

import base64
import time
import zlib
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import prometheus_client
import redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, Table, bindparam, delete, insert, select, update

from mailweir.contracts.events import Feedback
from mailweir.contracts.ids import RANDOM_BITS
from mailweir.plumbing import keys
from mailweir.plumbing.database import Database
from mailweir.plumbing.wire import Wire
from mailweir.spool.schema import attempts, counters, feedback, positions

ATTEMPT = "attempt"
FEEDBACK = "feedback"
SUPPRESSION = "suppression"

STREAM_LENGTH = 100_000  # entries kept, about
OVERLAP = 60.0  # seconds of ids read again by a full sweep (architecture: position less 60 s)
SHORT_OVERLAP = 5.0  # by the frequent one
SWEEP_EVERY = 2.0  # real seconds between two frequent sweeps
FULL_SWEEP_EVERY = 15.0
AWAY_SWEEP_EVERY = 0.3  # while Redis does not answer
PAGE = 2000  # rows read at once
FEW = 50  # entries of the stream for which it is worth waiting for more
COMPANY = 0.1  # real seconds of that wait
LATE_KEPT = 20_000  # ids older than the overlap that came by the stream

_LOST = prometheus_client.Counter(
    "mailweir_announcements_lost",
    "Announcements Redis did not take; the sweep finds their rows.",
    ["kind"],
)


def _entry(kind: str, ids: Sequence[int]) -> dict[Any, Any]:
    return {"kind": kind, "ids": ",".join(map(str, ids))}


def announce(client: redis.Redis, kind: str, ids: Sequence[int]) -> None:
    """Tell listeners which rows were just committed. Never raises for Redis: the tables are the truth."""
    if not ids:
        return
    try:
        client.xadd(keys.EVENTS, _entry(kind, ids), maxlen=STREAM_LENGTH, approximate=True)
    except RedisError:
        _LOST.labels(kind).inc(len(ids))


async def announce_async(wire: Wire, kind: str, ids: Sequence[int]) -> None:
    """The same for asyncio."""
    if not ids:
        return
    entry = (part for pair in _entry(kind, ids).items() for part in pair)
    try:
        await wire.run(("XADD", keys.EVENTS, "MAXLEN", "~", STREAM_LENGTH, "*", *entry))
    except RedisError:
        _LOST.labels(kind).inc(len(ids))


class AttemptRow(NamedTuple):
    """What listeners need of a row of ``attempts``; times are policy seconds."""

    id: int
    job_id: int
    number: int
    at: float
    source: str
    pool: str
    provider: str
    bucket: str
    tenant: str
    outcome: str
    category: str | None
    blame: str | None
    suppress: str | None
    seconds: float


class FeedbackRow(NamedTuple):
    """A row of ``feedback``: who it concerns, and the normalised event."""

    id: int
    job_id: int | None
    recipient_key: str | None
    tenant: str | None
    received_at: float
    event: Feedback


@dataclass(slots=True)
class News:
    """What came since the last look."""

    attempts: list[AttemptRow] = field(default_factory=list)
    feedback: list[FeedbackRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.attempts) + len(self.feedback)


class Seen:
    """The ids of one table already given: everything in the overlap, and late ones for a while."""

    def __init__(self) -> None:
        self.high = 0
        self._ids: set[int] = set()
        self._late: deque[int] = deque()
        self._pruned_at = 0

    def low(self, seconds: float) -> int:
        """The smallest id made at most ``seconds`` before the newest one."""
        return max(0, self.high - (int(seconds * 1000) << RANDOM_BITS))

    def new(self, ids: Iterable[int]) -> list[int]:
        """Those of ``ids`` not given yet; they count as given from now on."""
        fresh = [i for i in dict.fromkeys(ids) if i not in self._ids]
        low = self.low(OVERLAP)
        for i in fresh:
            self._ids.add(i)
            if i < low:
                self._late.append(i)
            elif i > self.high:
                self.high = i
        if self.high - self._pruned_at > (30_000 << RANDOM_BITS):
            self._prune()
        return fresh

    def _prune(self) -> None:
        while len(self._late) > LATE_KEPT:
            self._late.popleft()
        # half as long again: what a full sweep reads must still be known here
        low = self.low(OVERLAP * 1.5)
        self._ids = {i for i in self._ids if i >= low}
        self._ids.update(self._late)
        self._pruned_at = self.high

    def encode(self) -> str:
        """The overlap as text: deltas, compressed."""
        last, deltas = 0, array("q")
        for i in sorted(self._ids):
            deltas.append(i - last)
            last = i
        return base64.b85encode(zlib.compress(deltas.tobytes(), 1)).decode()

    @classmethod
    def decode(cls, text: str, high: int) -> Seen:
        """The counterpart of :meth:`encode`."""
        seen, last = cls(), 0
        seen.high = seen._pruned_at = high
        deltas = array("q")
        deltas.frombytes(zlib.decompress(base64.b85decode(text)))
        for delta in deltas:
            last += delta
            seen._ids.add(last)
        return seen


# names of ours only, no values
_ATTEMPTS = "SELECT " + ", ".join(AttemptRow._fields) + " FROM attempts WHERE id"  # noqa: S608
_ATTEMPTS_POSTGRESQL = _ATTEMPTS + " = ANY(%s::bigint[])"
_ATTEMPTS_SQLITE = _ATTEMPTS + " IN (SELECT value FROM json_each(?))"  # noqa: S608
_IDS = "SELECT id FROM {table} WHERE id > {mark} ORDER BY id LIMIT {mark}"
_FEEDBACK_COLUMNS = [
    feedback.c[n] for n in ("id", "job_id", "recipient_key", "tenant", "received_at", "body")
]
_decode_feedback = msgspec.json.Decoder(Feedback).decode


class Listener:
    """Gives every committed attempt and feedback once, quickly, in pages; one owner, one thread.

    ``name`` is its row in ``positions``. Whoever derives something from :meth:`poll` writes it and calls
    :meth:`commit` in the same transaction; after a crash the same rows come again.
    """

    def __init__(self, client: redis.Redis, database: Database, name: str) -> None:
        self._redis = client
        self._database = database
        self.name = name
        self._seen = {ATTEMPT: Seen(), FEEDBACK: Seen()}
        self._cursor: bytes | str | None = None
        self._redis_ok = False
        self._backlog = True  # the tables may hold more than what was read
        self._resume: dict[str, int] = {}  # where an unfinished sweep goes on
        self._next_sweep = 0.0
        self._next_full = 0.0
        self._restore()

    def poll(self, wait: float) -> News:
        """New rows; waits up to ``wait`` real seconds for the stream when there is nothing.

        Raises :class:`mailweir.plumbing.database.DatabaseUnavailable`; nothing is lost by it."""
        news = News()
        now = time.monotonic()
        if self._backlog or now >= self._next_sweep:
            self._sweep(news, full=self._backlog or now >= self._next_full)
            if self._backlog:
                return news
        wanted = self._stream(0 if len(news) else wait)
        for kind, ids in wanted.items():
            self._read(news, kind, self._seen[kind].new(ids))
        return news

    def commit(self, conn: Connection) -> None:
        """Store the position in the transaction that wrote what was derived."""
        a, f = self._seen[ATTEMPT], self._seen[FEEDBACK]
        now = time.time()
        body = msgspec.json.encode([a.encode(), f.encode()]).decode()
        put(conn, positions, "listener", self.name, position=f"{a.high}:{f.high}", updated_at=now)
        put(conn, counters, "key", f"seen:{self.name}", body=body, updated_at=now)

    def forget(self) -> None:
        """Go back to the stored position, after a transaction that failed."""
        self._restore()

    def _restore(self) -> None:
        with self._database.read() as conn:
            row = conn.execute(
                select(positions.c.position).where(positions.c.listener == self.name)
            ).scalar()
            body = conn.execute(
                select(counters.c.body).where(counters.c.key == f"seen:{self.name}")
            ).scalar()
        self._seen = {ATTEMPT: Seen(), FEEDBACK: Seen()}
        if row is not None and body is not None:
            highs = [int(part) for part in row.split(":")]
            texts = msgspec.json.decode(body, type=list[str])
            for kind, high, text in zip((ATTEMPT, FEEDBACK), highs, texts, strict=True):
                self._seen[kind] = Seen.decode(text, high)
        self._backlog, self._cursor, self._resume = True, None, {}

    def _stream(self, wait: float) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {ATTEMPT: [], FEEDBACK: []}
        try:
            if self._cursor is None:
                last: Any = self._redis.xrevrange(keys.EVENTS, count=1)
                # a moment before: rows announced while we swept come again and are known
                self._cursor = last[0][0] if last else "0-0"
                self._next_sweep = 0.0  # what was announced before this look is in the tables
                self._redis_ok = True
                return found
            block = max(1, int(wait * 1000)) if wait > 0 else None
            answer: Any = self._redis.xread({keys.EVENTS: self._cursor}, count=200, block=block)
            if answer and block is not None and sum(len(e) for _, e in answer) < FEW:
                # a look costs the same for one row and for hundreds; nobody needs them sooner
                time.sleep(COMPANY)
                answer = self._redis.xread({keys.EVENTS: self._cursor}, count=200)
            self._redis_ok = True
        except RedisError:
            if self._redis_ok:
                self._next_full = 0.0
            self._redis_ok, self._cursor = False, None
            if wait > 0:
                time.sleep(min(wait, AWAY_SWEEP_EVERY))
            return found
        for _, entries in answer or ():
            for stream_id, fields in entries:
                self._cursor = stream_id
                ids = found.get(fields.get(b"kind", b"").decode())
                if ids is not None:
                    ids.extend(int(i) for i in fields[b"ids"].split(b",") if i.isdigit())
        return found

    def _sweep(self, news: News, *, full: bool) -> None:
        now = time.monotonic()
        for kind, table in ((ATTEMPT, attempts), (FEEDBACK, feedback)):
            seen, unread = self._seen[kind], PAGE
            low = self._resume.pop(kind, seen.low(OVERLAP if full else SHORT_OVERLAP))
            while True:
                with self._database.read() as conn:
                    # the driver's own rows, as below: every id is read about three times
                    cursor = conn.connection.cursor()
                    mark = "%s" if self._database.dialect_name == "postgresql" else "?"
                    cursor.execute(_IDS.format(table=table.name, mark=mark), (low, PAGE))
                    ids = [row[0] for row in cursor.fetchall()]
                fresh = seen.new(ids)
                self._read(news, kind, fresh)
                unread -= len(fresh)
                if len(ids) < PAGE:
                    break
                low = ids[-1]
                if unread <= 0:
                    self._resume[kind] = low
                    break
        self._backlog = bool(self._resume)
        self._next_sweep = now + (SWEEP_EVERY if self._redis_ok else AWAY_SWEEP_EVERY)
        if full and not self._backlog:
            self._next_full = now + FULL_SWEEP_EVERY

    def _read(self, news: News, kind: str, ids: list[int]) -> None:
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            with self._database.read() as conn:
                if kind == ATTEMPT:
                    # the driver's own rows: this runs for every attempt, in each listener
                    cursor = conn.connection.cursor()
                    if self._database.dialect_name == "postgresql":
                        cursor.execute(_ATTEMPTS_POSTGRESQL, [some])
                    else:
                        cursor.execute(_ATTEMPTS_SQLITE, [f"[{','.join(map(str, some))}]"])
                    news.attempts.extend(map(AttemptRow._make, cursor.fetchall()))
                else:
                    rows = conn.execute(select(*_FEEDBACK_COLUMNS).where(feedback.c.id.in_(some)))
                    news.feedback.extend(
                        FeedbackRow(
                            row[0], row[1], row[2], row[3], row[4], _decode_feedback(row[5])
                        )
                        for row in rows
                    )


def put(conn: Connection, table: Table, column: str, key: str, **values: Any) -> None:
    """Insert or replace the one row whose ``column`` is ``key`` (it has one writer: no race)."""
    changed = conn.execute(
        update(table).where(table.c[column] == bindparam("put_key")).values(**values),
        {"put_key": key},
    )
    if changed.rowcount == 0:
        conn.execute(insert(table).values(**{column: key}, **values))


def drop(conn: Connection, table: Table, column: str, names: Sequence[str]) -> None:
    """Delete rows by key."""
    for start in range(0, len(names), 500):
        conn.execute(delete(table).where(table.c[column].in_(names[start : start + 500])))
