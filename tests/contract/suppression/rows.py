"""Rows as doors and workers write them, for suites of suppression and reputation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from mailweir.contracts.events import EventType, Feedback
from mailweir.contracts.ids import new_id
from mailweir.mail.address import canonical
from mailweir.plumbing.database import Database, migrate
from mailweir.spool import schema

SECRET = b"0123456789abcdef0123456789abcdef"


def sqlite(folder: Path) -> Iterator[Database]:
    """A migrated SQLite database."""
    database = Database(f"sqlite:///{folder / 'spool.db'}")
    migrate(database)
    try:
        yield database
    finally:
        database.close()


def job_row(recipient: str, **fields: Any) -> dict[str, Any]:
    """A row of ``jobs``."""
    row: dict[str, Any] = {
        "id": new_id(),
        "message_id": 1,
        "tenant": "acme",
        "bucket": "marketing",
        "priority": 5,
        "recipient": recipient,
        "recipient_key": canonical(recipient),
        "mail_from": "news@acme.test",
        "lane": "gmail",
        "flow": "gmail|acme|5",
        "content_id": 1,
        "meta": "{}",
        "state": "sent",
        "accepted_at": 1000.0,
        "attempts": 1,
        "crashes": 0,
        "marks": "",
    }
    return row | fields


def attempt_row(job_id: int, **fields: Any) -> dict[str, Any]:
    """A row of ``attempts``."""
    row: dict[str, Any] = {
        "id": new_id(),
        "job_id": job_id,
        "number": 1,
        "at": 1000.0,
        "source": "s1",
        "pool": "main",
        "provider": "gmail",
        "bucket": "marketing",
        "tenant": "acme",
        "outcome": "sent",
        "host": "mx.gmail.test",
        "stage": "dot",
        "code": 250,
        "reply": "ok",
        "seconds": 0.1,
        "category": None,
        "blame": None,
        "suppress": None,
    }
    return row | fields


HARD = {
    "outcome": "bounced",
    "stage": "rcpt",
    "code": 550,
    "category": "invalid_recipient",
    "blame": "recipient",
    "suppress": "recipient:",
}


def feedback_row(event: Feedback, **fields: Any) -> dict[str, Any]:
    """A row of ``feedback``."""
    import msgspec

    row: dict[str, Any] = {
        "id": new_id(),
        "event_id": event.event_id,
        "job_id": event.job_id,
        "type": str(event.type),
        "provider": event.provider,
        "occurred_at": event.occurred_at,
        "received_at": event.occurred_at,
        "recipient_key": event.recipient,
        "tenant": event.tenant,
        "category": event.category,
        "body": msgspec.json.encode(event).decode(),
    }
    return row | fields


def complaint(job_id: int | None, event_id: str = "c1", **fields: Any) -> Feedback:
    """A complaint as intake stores it."""
    return Feedback(
        event_id=event_id,
        type=EventType.COMPLAINED,
        provider="arf",
        occurred_at=1000.0,
        job_id=job_id,
        **fields,
    )


def write(database: Database, table: Any, rows: list[dict[str, Any]]) -> list[int]:
    """Insert rows; their ids."""
    with database.write() as conn:
        for start in range(0, len(rows), 500):
            conn.execute(insert(table), rows[start : start + 500])
    return [row["id"] for row in rows]


__all__ = [
    "HARD",
    "SECRET",
    "attempt_row",
    "complaint",
    "feedback_row",
    "job_row",
    "schema",
    "sqlite",
    "write",
]
