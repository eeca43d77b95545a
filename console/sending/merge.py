"""A mail merge from the command line: rows to chunks, chunks to the API, answers back to lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from console.sending.rows import BadRow, Row
from mailweir.contracts.job import Accepted
from producer.client import Client
from producer.errors import MailError
from producer.message import Address, Message

CHUNK = 500  # rows of one call
_IN_FLIGHT = 3  # calls at once
_KEPT = 1000  # problems kept for the summary; all of them are reported as they come


@dataclass
class Summary:
    """What became of all rows."""

    accepted: int = 0
    duplicates: int = 0
    refused: int = 0
    messages: list[str] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)

    def problem(self, line: int, why: str) -> None:
        """Count a refused row."""
        self.refused += 1
        if len(self.problems) < _KEPT:
            self.problems.append({"line": line, "why": why})


def merge(
    client: Client,
    rows: Iterable[Row | BadRow],
    message: Callable[[list[Address], str], Message],
    key: str,
    report: Callable[[int, str], None],
    progress: Callable[[Summary], None],
) -> Summary:
    """Send to every usable row, in constant memory.

    ``message(to, idempotency_key)`` makes the message of a chunk. Chunks are cut by position, so the
    same file under the same key is the same calls again. ``report(line, why)`` gets every bad row.
    Raises MailError when a whole call fails; what was accepted before stays accepted."""
    summary = Summary()

    def bad(line: int, why: str) -> None:
        summary.problem(line, why)
        report(line, why)

    pending: deque[tuple[list[Row], Future[Accepted]]] = deque()
    with ThreadPoolExecutor(_IN_FLIGHT, "send") as pool:
        try:
            for number, chunk in enumerate(_chunks(rows, bad)):
                to = [Address(row.email, row.name, row.variables) for row in chunk]
                pending.append((chunk, pool.submit(client.send, message(to, f"{key}:{number}"))))
                while len(pending) >= _IN_FLIGHT:
                    _settle(*pending.popleft(), summary, bad)
                    progress(summary)
            while pending:
                _settle(*pending.popleft(), summary, bad)
                progress(summary)
        except MailError:
            for _, future in pending:
                future.cancel()
            raise
    return summary


def _chunks(rows: Iterable[Row | BadRow], bad: Callable[[int, str], None]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        if isinstance(row, BadRow):
            bad(row.line, row.why)
            continue
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _settle(
    chunk: list[Row], future: Future[Accepted], summary: Summary, bad: Callable[[int, str], None]
) -> None:
    answer = future.result()
    if answer.id:
        summary.messages.append(answer.id)
    lines: dict[str, int] = {}
    for row in chunk:
        lines.setdefault(row.email.lower(), row.line)
    for job in answer.jobs:
        if job.status == "accepted":
            summary.accepted += 1
        elif job.status == "duplicate":
            summary.duplicates += 1
        else:
            bad(lines.get(job.recipient.lower(), chunk[0].line), job.reason or job.status)
