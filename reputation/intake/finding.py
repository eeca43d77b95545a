"""Which job an event from outside speaks of, and whether that is proven.

A relay's webhook is authenticated: the recipient narrows it down, our Message-ID or the relay's own id (kept
in the reply it took the mail with) tell two mails to one person apart. A mail may be written by anyone: only
our tokens prove a job - the return path's (found by the parser) or the unsubscribe link's in the returned
copy. A bare reference or Message-ID finds the job too, but is no proof: ids are counted up, and everyone a
mail went to knows its Message-ID.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, select

from mailweir.contracts.events import Feedback
from mailweir.contracts.ids import InvalidId, parse_id
from mailweir.mail.address import InvalidAddress, canonical
from mailweir.spool.schema import attempts, jobs
from suppression.unsubscribe import Holder, job_of_token, verify_token

LOOK_BACK = 30 * 86400.0
"""Policy seconds back in which a job may be the one an event speaks of."""

CANDIDATES = 50
"""Newest jobs of a recipient among which one is looked for."""

BY_MAIL = frozenset({"dsn", "bounce", "arf", "autoreply", "mail"})
"""Reports that come by mail: anyone can write one."""

AT_ONCE = 5000
"""Jobs looked at together for a call's recipients; with more, each recipient is asked for alone."""

_C = jobs.c
_COLUMNS = (_C.id, _C.message_id, _C.tenant, _C.bucket, _C.recipient_key, _C.state, _C.marks)


class Found(NamedTuple):
    """The job as it was read; ``marks`` space-separated. ``proven`` False: by a reference anyone may have
    written."""

    id: int
    tenant: str
    recipient_key: str
    state: str
    marks: str
    proven: bool = True


def find(
    conn: Connection,
    events: Sequence[Feedback],
    now: float,
    tenant: str | None,
    secret: bytes | None,
) -> list[Found | None]:
    """The job of each event at policy time ``now``; ``tenant``: whose path they came by. ``secret`` is the
    installation's, for unsubscribe tokens; None: they are not looked at."""
    recent = _of(tenant).where(
        jobs.c.first_attempt_at.is_not(None), jobs.c.accepted_at >= now - LOOK_BACK
    )
    keys = [_key(event) for event in events]
    near = _near(conn, recent, sorted({key for key in keys if key is not None}))
    found: list[Found | None] = []
    for event, key in zip(events, keys, strict=True):
        ids = _own_ids(event.message_ids)
        if event.job_id is not None:
            job = _first(conn, _of(tenant).where(jobs.c.id == event.job_id))
        elif event.provider in BY_MAIL:
            job = _by_token(conn, event, tenant, secret) or _by_reference(conn, recent, ids)
        else:
            rows = _of_recipient(conn, recent, key, near)
            job = _chosen(conn, rows, event, ids) or _by_message(conn, recent, ids)
        found.append(job)
    return found


def _key(event: Feedback) -> str | None:
    """The address a relay names, as jobs keep it."""
    if event.recipient is None or event.job_id is not None or event.provider in BY_MAIL:
        return None
    try:
        return canonical(event.recipient)
    except InvalidAddress:
        return None


def _near(
    conn: Connection, recent: Select[Any], keys: Sequence[str]
) -> dict[str, list[Any]] | None:
    """The newest jobs of all recipients of a call, newest first; None where there are too many."""
    found: dict[str, list[Any]] = {key: [] for key in keys}
    left = AT_ONCE
    for start in range(0, len(keys), 500):
        query = recent.where(jobs.c.recipient_key.in_(keys[start : start + 500]))
        rows = conn.execute(query.order_by(jobs.c.id.desc()).limit(left)).all()
        left -= len(rows)
        if left <= 0:
            return None
        for row in rows:
            if len(found[row.recipient_key]) < CANDIDATES:
                found[row.recipient_key].append(row)
    return found


def _of_recipient(
    conn: Connection, recent: Select[Any], key: str | None, near: dict[str, list[Any]] | None
) -> Sequence[Any]:
    if key is None:
        return ()
    if near is not None:
        return near[key]
    query = recent.where(jobs.c.recipient_key == key).order_by(jobs.c.id.desc())
    return conn.execute(query.limit(CANDIDATES)).all()


def _of(tenant: str | None) -> Select[Any]:
    query = select(*_COLUMNS)
    return query if tenant is None else query.where(jobs.c.tenant == tenant)


def _first(conn: Connection, query: Select[Any], *, proven: bool = True) -> Found | None:
    row = conn.execute(query.limit(1)).first()
    return None if row is None else _found(row, proven)


def _found(row: Any, proven: bool = True) -> Found:
    return Found(row.id, row.tenant, row.recipient_key, row.state, row.marks, proven)


def _own_ids(texts: Sequence[str]) -> list[int]:
    """Those of the ids that may be ours: ``0abc...`` or ``0abc...@domain``."""
    found = []
    for text in texts:
        try:
            found.append(parse_id(text.partition("@")[0]))
        except InvalidId:
            continue
    return found


def _by_token(
    conn: Connection, event: Feedback, tenant: str | None, secret: bytes | None
) -> Found | None:
    for text in event.message_ids if secret is not None else ():
        job_id = job_of_token(text)
        if job_id is None or job_id >= 1 << 63 or secret is None:
            continue
        row = conn.execute(_of(tenant).where(jobs.c.id == job_id)).first()
        if row is not None:
            holder = Holder(row.id, row.tenant, row.bucket, row.recipient_key)
            if verify_token(secret, text, holder):
                return _found(row)
    return None


def _by_reference(conn: Connection, recent: Select[Any], ids: Sequence[int]) -> Found | None:
    if not ids:
        return None
    found = _first(conn, recent.where(jobs.c.id.in_(ids)), proven=False)
    if found is not None:
        return found
    alone = _by_message(conn, recent, ids)
    return None if alone is None else alone._replace(proven=False)


def _by_message(conn: Connection, recent: Select[Any], ids: Sequence[int]) -> Found | None:
    """The job a Message-ID names: the only one of its message, or itself."""
    if not ids:
        return None
    rows = conn.execute(
        recent.where(jobs.c.message_id.in_(ids) | jobs.c.id.in_(ids)).limit(2)
    ).all()
    return _found(rows[0]) if len(rows) == 1 else None


def _chosen(
    conn: Connection, rows: Sequence[Any], event: Feedback, ids: Sequence[int]
) -> Found | None:
    """The one of a recipient's jobs the event names, else the newest."""
    if not rows:
        return None
    row = next((r for r in rows if r.id in ids or r.message_id in ids), None)
    if row is None and len(rows) > 1 and event.message_ids:
        job_id = _answered(conn, [r.id for r in rows], event.message_ids)
        row = next((r for r in rows if r.id == job_id), None)
    return _found(rows[0] if row is None else row)


def _answered(conn: Connection, job_ids: Sequence[int], ids: Sequence[str]) -> int | None:
    """The job whose relay answered with one of these ids when it took the mail."""
    query = select(attempts.c.job_id, attempts.c.reply).where(
        attempts.c.job_id.in_(job_ids), attempts.c.outcome == "sent"
    )
    for job_id, reply in conn.execute(query.order_by(attempts.c.at.desc())):
        if any(text in reply for text in ids):
            return int(job_id)
    return None
