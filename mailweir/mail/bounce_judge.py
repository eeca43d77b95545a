"""What a report's words about one recipient mean: the classifier asked as a report has to be read.

A report quotes replies of every stage, wraps them in politeness, and may say in its Status what its words
leave open. Pure.
"""

from __future__ import annotations

import re

from mailweir.contracts.events import BounceClass, Classification
from mailweir.mail.classify import classify
from mailweir.mail.dsn import Failed
from mailweir.mail.providers import known_provider
from mailweir.mail.reply import enhanced_of, read

_CERTAIN = 0.8
"""Confidence of a category above which nothing else is asked."""

_LINES = 20


def certain(status: str | None) -> bool:
    """Whether a Status field alone says why: it goes before words written for people."""
    return status is not None and classify(status, stage="dsn").confidence >= _CERTAIN


_BEFORE_RCPT = ("connect", "ehlo", "starttls", "mail")
"""Stages at which a host has not heard of the recipient yet: "no such domain" is said of the sender."""

_TRANSCRIPT = re.compile(r">>> (ehlo|helo|mail)\b[^\n]{0,400}\n\s*<<< [45]\d\d", re.IGNORECASE)


def _stage(reply: str) -> str:
    """How far the transaction had come by the report's own words; ``dsn`` where they say nothing."""
    told = read(reply).stage
    if told is None and (seen := _TRANSCRIPT.search(reply)) is not None:
        told = "mail" if seen[1].lower() == "mail" else "ehlo"
    return told if told in _BEFORE_RCPT else "dsn"


def classify_failure(reply: str, status: str | None, recipient: str | None) -> Classification:
    """Diagnostic text before Status before nothing (RFC 3464 2.3.4, 2.3.6)."""
    return _asked(reply, status, recipient, _stage(reply))


def _asked(reply: str, status: str | None, recipient: str | None, stage: str) -> Classification:
    domain = (recipient or "").rpartition("@")[2]
    provider = known_provider(domain) if domain else None
    found = classify(reply, provider=provider, stage=stage)
    if status is not None and (found.category == "unknown" or found.confidence < 0.6):
        by_status = classify(status, provider=provider, stage=stage)
        if by_status.category != "unknown":
            return by_status
    return found


_REFUSED_BY_RULE = "5.7.2"
"""RFC 3463 3.8: the recipient does not want it."""


def judged(failed: Failed) -> Classification:
    """The category of a failure. Whoever answers by a rule has a mailbox, whatever he makes it say (RFC 5429
    2.1); only a mail system's code is believed that it has not."""
    found = _judged(failed)
    if failed.by_rule and found.cls is BounceClass.HARD and enhanced_of(failed.reply) is None:
        return classify(_REFUSED_BY_RULE, stage="dsn")
    return found


def _judged(failed: Failed) -> Classification:
    """Where a report's words together say nothing certain, because politeness
    stands around them, its line that does."""
    stage = _stage(failed.reply)
    found = _asked(failed.reply, failed.status, failed.recipient, stage)
    if found.confidence >= _CERTAIN:
        return found
    for line in failed.reply.split("\n")[:_LINES] if "\n" in failed.reply else ():
        alone = _asked(line, failed.status, failed.recipient, stage)
        if alone.confidence > max(found.confidence, _CERTAIN - 0.01):
            found = alone
    return found
