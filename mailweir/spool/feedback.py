"""The row of ``feedback`` an event becomes, and its insertion once per event id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from mailweir.contracts.events import Feedback
from mailweir.spool.schema import feedback

MAX_RAW = 256 * 1024
"""Bytes of a raw event that are kept."""


_TEXTS = (
    "event_id", "recipient", "category", "status", "reply", "source", "remote_host", "url", "user_agent",
)  # fmt: skip


def printable(event: Feedback) -> Feedback:
    """The event in characters a database keeps: no NUL (PostgreSQL), no lone surrogates (undecodable bytes of
    a mail). One odd reply must not lose the call it came with."""
    odd: dict[str, Any] = {
        name: _clean(value)
        for name in _TEXTS
        if isinstance(value := getattr(event, name), str) and not value.isprintable()
    }
    if any(not tag.isprintable() for tag in event.tags):
        odd["tags"] = tuple(_clean(tag) for tag in event.tags)
    return msgspec.structs.replace(event, **odd) if odd else event


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "")


def feedback_row(
    row_id: int, event: Feedback, *, recipient_key: str | None, now: float, raw: bytes = b""
) -> dict[str, Any]:
    """The columns; ``now`` is when it came, policy seconds, ``raw`` what came."""
    return {
        "id": row_id,
        "event_id": event.event_id[:255],
        "job_id": event.job_id,
        "type": event.type.value,
        "provider": event.provider,
        "occurred_at": event.occurred_at,
        "received_at": now,
        "recipient_key": recipient_key,
        "tenant": event.tenant,
        "category": None if event.category is None else event.category[:32],
        "body": msgspec.json.encode(event).decode(),
        "raw": raw[:MAX_RAW] or None,
    }


def known_feedback(conn: Connection, event_ids: Sequence[str]) -> set[str]:
    """Those event ids (as :func:`feedback_row` cuts them) that were taken before."""
    known: set[str] = set()
    for start in range(0, len(event_ids), 500):
        some = select(feedback.c.event_id).where(
            feedback.c.event_id.in_([text[:255] for text in event_ids[start : start + 500]])
        )
        known.update(conn.execute(some).scalars())
    return known & set(event_ids)


def insert_feedback(conn: Connection, rows: Sequence[dict[str, Any]]) -> set[int]:
    """Write the rows whose event ids are not there; the ids of those written."""
    if not rows:
        return set()
    make = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    statement = make(feedback).on_conflict_do_nothing(index_elements=["event_id"])
    # a row comes back only if it was written: drivers disagree about counts
    return set(conn.execute(statement.returning(feedback.c.id), list(rows)).scalars())
