"""The row of ``feedback`` an event becomes, and its insertion once per event id."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from mailweir.contracts.events import Feedback
from mailweir.spool.schema import feedback

MAX_RAW = 256 * 1024
"""Bytes of a raw event that are kept."""


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
        "category": event.category,
        "body": msgspec.json.encode(event).decode(),
        "raw": raw[:MAX_RAW] or None,
    }


def insert_feedback(conn: Connection, row: dict[str, Any]) -> bool:
    """Write the row unless its event id is there. Whether it is new."""
    make = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    statement = make(feedback).values(row).on_conflict_do_nothing(index_elements=["event_id"])
    # the row comes back only if it was written: drivers disagree about counts
    return conn.execute(statement.returning(feedback.c.id)).first() is not None
