"""Accept: messages become rows; the moment after which nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
from sqlalchemy.engine.interfaces import DBAPICursor

from mailweir.contracts.ids import format_id
from mailweir.contracts.job import Accepted, JobStatus, NewJob, NewMessage
from mailweir.plumbing.database import Deadlock
from mailweir.spool import statements as sql
from mailweir.spool.base import Room
from mailweir.spool.records import Conflict, Unstorable, flow_key, is_engaged
from mailweir.spool.rows import json_of

_decode_answer = msgspec.json.Decoder(Accepted).decode
_Answer = Accepted | Conflict | Unstorable
_Key = tuple[str, str]

# Columns whose text comes from a submitter, with PostgreSQL's limit in characters.
_LIMITS = {"tenant": 64, "idempotency_key": 256, "campaign": 128}
_ADDRESS_LIMIT = 320
_LARGE = 65_536
"""Bytes of content from which on a plan for just these values is worth avoiding."""


_IN_THE_ROW = (None, None, None)
"""The place of a body that is in no file."""


class Doors(Room):
    """The operation of the doors."""

    def accept(self, messages: Sequence[NewMessage]) -> list[_Answer]:
        """Commit messages with their jobs in one transaction (group commit), answer in order.

        Same tenant and idempotency key as an earlier or a concurrent call: its answer again
        (``duplicate=True``) when ``request_hash`` agrees, else :class:`Conflict`. Keys older than the
        setting's hours (policy time) do not count. A message no database could hold is answered
        :class:`Unstorable`; neither harms the others. Calling again with the very same messages
        (after a lost connection during the commit) stores nothing twice."""
        now = self.clock.now()
        answers: list[_Answer | None] = []
        rows: dict[int, _Rows] = {}
        for message in messages:
            why = _unstorable(message)
            if not why:
                try:
                    rows[message.id] = _Rows(message, now)
                except (UnicodeEncodeError, TypeError, ValueError) as error:
                    why = f"variables or metadata have no JSON: {type(error).__name__}"
            answers.append(Unstorable(message.id, why) if why else None)
        keyed = _first_by_key(m.message for m in rows.values())
        if rows:
            todo = list(rows.values())
            with self._bodies_in_files(todo):
                told = self._write(lambda _, cursor: self._accept(cursor, todo, keyed, now))
            for index, message in enumerate(messages):
                if answers[index] is None:
                    answers[index] = told[message.id]
        return [answer for answer in answers if answer is not None]

    @contextmanager
    def _bodies_in_files(self, todo: list[_Rows]) -> Iterator[None]:
        """Before the transaction: the write lock is short, and no row names a body that is not there."""
        contents = {r.content[0]: r.content for r in todo}
        size = sum(len(content[2]) for content in contents.values())
        if self.database.bodies is None or size < max(1, self.database.bodies_from):
            yield
            return
        bodies = [content[2] for content in contents.values()]
        with ExitStack() as held:
            with self.database.body_files() as files:
                places = held.enter_context(files.adding(bodies))
            placed = dict(zip(contents, places, strict=True))
            for r in todo:
                number, kind, _, *rest = r.content[:5]
                r.content = (number, kind, b"", *rest, *placed[number])
            yield

    def _accept(
        self, cursor: DBAPICursor, todo: list[_Rows], keyed: dict[_Key, int], now: float
    ) -> dict[int, _Answer]:
        told: dict[int, _Answer] = {r.id: r.accepted for r in todo}
        added: list[_Rows] = []
        if self._postgresql:
            # nearly always all are new: adding them says so, without two looks before it
            met = {r.id for r in self._add_messages(cursor, todo)}
            added = [r for r in todo if r.id not in met]
            todo = [r for r in todo if r.id in met]
            if not todo:
                self._add_jobs(cursor, added)
                return told
        known = {
            r[0] for r in self._rows(cursor, sql.MESSAGES_KNOWN, [self._ids(r.id for r in todo)])
        }
        earlier = self._earlier(cursor, list(keyed), now)
        fresh: list[_Rows] = []
        later: list[_Rows] = []  # has the key of another message of this very group
        for r in todo:
            if r.id in known:
                continue  # this very message was committed before: its answer again
            found = earlier.get(r.full_key) if r.full_key else None
            if found is not None:
                told[r.id] = _again(r.message, *found)
            elif r.full_key and keyed[r.full_key] != r.id:
                later.append(r)
            else:
                fresh.append(r)
        lost = self._add_messages(cursor, fresh)
        if lost:  # PostgreSQL: somebody else committed these keys after we looked
            found_now = self._earlier(cursor, [r.full_key for r in lost if r.full_key], now)
            for r in lost:
                if r.full_key not in found_now:
                    raise Deadlock("a key appeared and vanished again: repeat the transaction")
                told[r.id] = _again(r.message, *found_now[r.full_key])
            gone = {r.id for r in lost}
            fresh = [r for r in fresh if r.id not in gone]
        by_id = {r.id: r for r in todo}
        for r in later:
            assert r.full_key is not None
            first = by_id[keyed[r.full_key]]
            answer = told[first.id]
            if isinstance(answer, Accepted):
                told[r.id] = _again(r.message, first.message.request_hash, answer)
            else:  # the first met a conflict; this one may agree with the earlier call
                found = self._earlier(cursor, [r.full_key], now)[r.full_key]
                told[r.id] = _again(r.message, *found)
        self._add_jobs(cursor, added + fresh)
        return told

    def _add_jobs(self, cursor: DBAPICursor, fresh: list[_Rows]) -> None:
        contents = {r.content[0]: r.content for r in fresh}
        if self._postgresql and sum(len(content[2]) for content in contents.values()) > _LARGE:
            cursor.execute(sql.KEEP_PLANS)
        self._many(cursor, sql.CONTENTS_ADD, list(contents.values()))
        self._many(cursor, sql.JOBS_ADD, [job for r in fresh for job in r.jobs])

    def _add_messages(self, cursor: DBAPICursor, fresh: list[_Rows]) -> list[_Rows]:
        if self._postgresql:
            # in order of the keys, so that two groups with the same ones never wait in a circle
            ordered = sorted(fresh, key=lambda r: (r.message.tenant, r.key or ""))
        else:
            ordered = fresh
        self._many(cursor, sql.MESSAGES_ADD, [r.row for r in ordered])
        if not self._postgresql or not fresh:
            return []
        added = {r[0] for r in cursor.fetchall()}
        return [r for r in fresh if r.id not in added]

    def _earlier(
        self, cursor: DBAPICursor, keys: list[_Key], now: float
    ) -> dict[_Key, tuple[bytes, Accepted]]:
        """Earlier calls with these keys; keys that are too old are released on the way."""
        if not keys:
            return {}
        if self._postgresql:
            parameters: list[Any] = [[k[0] for k in keys], [k[1] for k in keys]]
        else:
            parameters = [json_of(keys)]
        found = {}
        stale = []
        for row in self._rows(cursor, sql.KEYS_KNOWN, parameters):
            message_id, tenant, key, request_hash, answer, accepted_at = row
            if accepted_at < now - self.idempotency_seconds:
                stale.append(message_id)
            else:
                found[(tenant, key)] = (request_hash, _decode_answer(answer))
        if stale:
            self._run(cursor, sql.KEYS_RELEASE, [self._ids(stale)])
        return found


class _Rows:
    """A message's rows, made before the transaction begins: the write lock is short."""

    __slots__ = ("accepted", "content", "full_key", "id", "jobs", "key", "message", "row")

    def __init__(self, message: NewMessage, now: float) -> None:
        m = message
        self.message = m
        self.id = m.id
        self.key = m.idempotency_key
        self.full_key = None if m.idempotency_key is None else (m.tenant, m.idempotency_key)
        self.accepted = Accepted(
            format_id(m.id),
            tuple([JobStatus(job.recipient, format_id(job.id), "accepted") for job in m.jobs]),
        )
        answer = json_of(self.accepted) if m.idempotency_key is not None else ""
        self.row = (m.id, m.tenant, m.idempotency_key, m.request_hash, answer, now)
        content = m.content
        self.content: tuple[Any, ...] = (
            content.id,
            content.kind.value,
            content.body,
            content.sha256,
            now,
            *_IN_THE_ROW,
        )
        size = len(content.body)
        meta = json_of(m.meta)
        bucket = m.bucket.value
        campaign = m.meta.campaign
        engaged = is_engaged(m.bucket, m.meta)
        self.jobs = [
            (
                job.id,
                m.id,
                m.tenant,
                bucket,
                m.priority,
                job.recipient,
                job.recipient.lower(),
                job.mail_from,
                job.lane,
                flow_key(job.lane, m.tenant, m.priority, engaged=engaged),
                content.id,
                size,
                None if job.variables is None else json_of(job.variables),
                meta if not job.prepend else _own_meta(m, job),
                campaign,
                now,
                m.send_at,
                m.expires_at,
            )
            for job in m.jobs
        ]


def _own_meta(message: NewMessage, job: NewJob) -> str:
    """The meta of a job with header lines of its own, which stand before the message's."""
    prepend = job.prepend + message.meta.prepend
    return json_of(msgspec.structs.replace(message.meta, prepend=prepend))


def _first_by_key(messages: Any) -> dict[_Key, int]:
    first: dict[_Key, int] = {}
    for m in messages:
        if m.idempotency_key is not None:
            first.setdefault((m.tenant, m.idempotency_key), m.id)
    return first


def _again(message: NewMessage, request_hash: bytes, answer: Accepted) -> Accepted | Conflict:
    if bytes(request_hash) != message.request_hash:
        return Conflict(message.tenant, message.idempotency_key or "")
    return Accepted(answer.id, answer.jobs, duplicate=True)


def _unstorable(message: NewMessage) -> str:
    """Why no database of ours can hold this message; empty when it can."""
    texts = {
        "tenant": message.tenant,
        "idempotency_key": message.idempotency_key or "",
        "campaign": message.meta.campaign or "",
    }
    for name, text in texts.items():
        if len(text) > _LIMITS[name]:
            return f"{name} is longer than {_LIMITS[name]} characters"
        if "\0" in text or not _encodable(text):
            return f"{name} holds a NUL or a lone surrogate"
    for job in message.jobs:
        for name, text in (("recipient", job.recipient), ("mail_from", job.mail_from)):
            if len(text) > _ADDRESS_LIMIT:
                return f"{name} is longer than {_ADDRESS_LIMIT} characters"
            if "\0" in text or not _encodable(text):
                return f"{name} holds a NUL or a lone surrogate"
    return ""


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
