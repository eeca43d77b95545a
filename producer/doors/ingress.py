"""The ingress door: what services published to Celery's ingress queue becomes accepted mail.

A message is claimed, committed by ``accept``, and only then removed, so a consumer may be killed at
any moment; what it had claimed is accepted by the next one. ``accept`` sees a message again after such a
death and must know it by its id. *Published* is not yet accepted: see ``docs/decisions/0030-celery.md``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog
from prometheus_client import Counter

from mailweir.plumbing.beat import Beat
from mailweir.plumbing.broker import broker_url
from mailweir.plumbing.settings import Settings
from producer.doors.ingress_lines import Claimed, Line, LineDown, open_line

Accept = Callable[[Sequence[bytes]], Sequence[str | None]]
"""Commit payloads (JSON of :class:`mailweir.contracts.submit.Published`). Answers, one per payload: None for
committed (now or before), or why it never can be: it then becomes a dead letter. Raising means
nothing of this call may be removed; it is tried again."""

Bury = Callable[[bytes, str], None]
"""Keep a dead letter: its bytes as they came, and the reason. Commits before it returns."""

LONGEST_PAUSE = 5.0  # real seconds between two tries while the spool or the broker is down
_FIRST_PAUSE = 0.05

log = structlog.get_logger(__name__)
messages_total = Counter("mailweir_ingress_messages", "Messages taken off.", ["result"])
failures_total = Counter("mailweir_ingress_failures", "Batches that must be tried again.", ["what"])


class IngressConsumer:
    """One consumer. ``step`` does one batch."""

    def __init__(self, line: Line, accept: Accept, bury: Bury, *, batch: int) -> None:
        self._line = line
        self._accept = accept
        self._bury = bury
        self._batch = batch
        self._size = batch  # halved while accept fails: one bad message must not hold up the others

    def step(self) -> int:
        """Claim, commit, remove; the number of messages taken off.

        Raises :class:`LineDown`, and what ``accept`` or ``bury`` raise.
        """
        claimed = list(self._line.claim())[: self._size]
        if not claimed:
            return 0
        try:
            self._commit(claimed)
        except Exception:
            failures_total.labels("commit").inc()
            if len(claimed) == 1:
                self._line.give_back()
            self._size = max(1, min(self._size, len(claimed)) // 2)
            raise
        self._size = min(self._batch, self._size * 2)
        if not self._line.commit(len(claimed)):
            failures_total.labels("lease").inc()
            log.warning("ingress_claim_taken_over", messages=len(claimed))
        return len(claimed)

    def _commit(self, claimed: Sequence[Claimed]) -> None:
        whole = [one.payload for one in claimed if one.broken is None]
        reasons = iter(self._accept(whole) if whole else ())
        for one in claimed:
            reason = one.broken if one.broken is not None else next(reasons)
            if reason is not None:
                self._bury(one.payload, reason)
            messages_total.labels("accepted" if reason is None else "dead_letter").inc()


def run(settings: Settings, accept: Accept, bury: Bury, stop: Callable[[], bool]) -> None:
    """Consume until ``stop()`` is true; then give back what is claimed and return."""
    line = open_line(settings, broker_url(settings))
    consumer = IngressConsumer(line, accept, bury, batch=settings.ingress.batch)
    beat = Beat()
    pause = _FIRST_PAUSE
    while not stop():
        beat.touch()
        try:
            taken = consumer.step()
        except Exception as error:  # the spool or the broker is away: nothing was removed
            log.error("ingress_batch_failed", error=f"{type(error).__name__}: {error}")
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
            continue
        pause = _FIRST_PAUSE
        if not taken:
            time.sleep(settings.ingress.idle)
    try:
        line.leave()
    except LineDown:  # the broker is away: the lease or the connection ends by itself
        log.warning("ingress_left_without_a_word")
