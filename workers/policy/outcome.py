"""What becomes of a job after one attempt: one pure function, :func:`decide`.

The rows of S35, S39, S40 and N41 in the order they bind: accepted, uncertain, the remote's
"later", the remote's "no". Recipients' faults never count against a path (S38).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from mailweir.contracts.events import Classification, Suppress
from mailweir.contracts.job import Job
from mailweir.contracts.lifecycle import State
from mailweir.contracts.policy import Provider, Retry, Source
from mailweir.contracts.route import Orders
from workers.delivery.types import Result
from workers.policy import retry as spacing

UNCERTAIN_WAIT = 900.0
"""Seconds before an uncertain job is sent again: time for a DSN or webhook to settle it (N41)."""

MAX_HINT = 86_400.0
"""Longest wait a reply may ask for, seconds; a wrong hint must not bury a job."""

SOON = 1.0
"""Seconds before a job that changes its way is due: the path's new state is booked first."""

FAST_MOVES = 2
"""Attempts a job may spend changing ways at once; later ones keep the schedule."""

HANDSHAKE = frozenset({"dns", "connect", "banner", "ehlo", "helo", "starttls", "auth"})
"""Stages before the mail is named: a refusal here is about the host, never about the mail (P2)."""

# Shortest wait after a transient reply of this kind, seconds (deliverability facts 2.2).
WAIT: dict[str, float] = {
    "greylisted": 300.0,
    "mailbox_full": 6 * 3600.0,
    "recipient_rate_limited": 3600.0,
    "reputation_block": 3600.0,
    "blocklisted": 4 * 3600.0,
    "tls_required": 60.0,
}

# Moving these to another source makes duplicates, new greylisting, or is snowshoeing (S35).
STAYS = frozenset(
    {
        "greylisted",
        "mailbox_full",
        "recipient_rate_limited",
        "recipient_refused",
        "reputation_block",
        "spam_content",
        "content_rejected",
        "virus",
    }
)

# The remote works and says no to this mail or this person: nothing against the path.
ANSWERED = STAYS - {"reputation_block"} | {
    "invalid_recipient",
    "inactive_mailbox",
    "invalid_domain",
    "message_too_large",
    "too_many_recipients",
    "sender_rejected",
    "auth_failure",
    "auto_reply",
    "challenge",
    "routing_loop",
}

NOT_OURS = frozenset({"dns_failure"})
"""Trouble that says nothing about the path: our resolver, or the domain's."""


CUT = "cut"
"""``Result.error`` of a conversation we ended ourselves (a stop, a defect of ours)."""


class PathEvent(StrEnum):
    """What an attempt says of its path; booked by ``book.lua``."""

    GOOD = "good"  # accepted
    ANSWERED = "answered"  # refused for the recipient's, content's or sender's sake: the path works
    SLOW = "slow"  # the remote asks for less
    BAD = "bad"  # the path itself failed
    NEUTRAL = "neutral"  # says nothing


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The decision. ``due_at`` is set exactly for states that are tried again."""

    state: State
    event: PathEvent
    due_at: float | None = None
    reason: str | None = None
    stay_with: str | None = None  # source the next attempt must keep
    suppress: Suppress | None = None  # what the suppression list is asked for
    layer: str | None = None  # failover layer that moves the job: source, relay
    category: str | None = None
    blame: str | None = None
    path_until: float | None = None  # the remote named a time for the whole path (policy seconds)

    @property
    def counts_against_path(self) -> bool:
        """Whether the attempt speaks against its path: the breaker counts it, or the rate obeys it."""
        return self.event in (PathEvent.BAD, PathEvent.SLOW)


def decide(
    job: Job,
    orders: Orders,
    result: Result,
    classification: Classification | None,
    retry: Retry,
    *,
    source: Source,
    now: float,
    chance: float,
    provider: Provider | None = None,
    resent: bool = False,
) -> Verdict:
    """What becomes of ``job`` after ``result``.

    ``classification`` is None only where the remote gave no words (a lost connection). ``resent``:
    an earlier attempt was uncertain already; it is not sent a third time. ``chance`` is 0..1.
    """
    if job.meta.sandbox:
        return Verdict(
            State.SENT, PathEvent.NEUTRAL, reason="sandbox: it went the whole way but out"
        )
    if result.accepted:
        return Verdict(State.SENT, PathEvent.GOOD)
    if result.uncertain:
        return _uncertain(job, retry, result, source, now, resent)
    if result.dot_sent and result.error is not None:
        # A reply came but could not be read as one (P15, P21): the remote may hold the mail.
        return _uncertain(job, retry, result, source, now, resent)
    seen = _about_the_host(classification) if result.stage in HANDSHAKE else classification
    category = seen.category if seen else "network_error"
    event = path_event(result, seen)
    if _permanent(result, seen, orders):
        return Verdict(
            State.BOUNCED,
            event,
            reason=_reason(result, category),
            suppress=seen.suppress if seen else None,
            category=category,
            blame=seen.blame if seen else "remote",
        )
    return _later(job, retry, result, seen, category, event, source, now, chance, provider, resent)


def _about_the_host(seen: Classification | None) -> Classification | None:
    """A reply that came before any recipient was named is no recipient's fault, whatever it says."""
    if seen is None or seen.blame != "recipient":
        return seen
    return msgspec.structs.replace(
        seen, category="server_error", blame="remote", retry="same", suppress=None
    )


def path_event(result: Result, seen: Classification | None) -> PathEvent:
    """What an attempt that was not accepted says of its path."""
    if result.stage == "dns":
        return PathEvent.NEUTRAL
    if result.error is not None or result.stage in HANDSHAKE:
        return PathEvent.BAD
    if seen is None:
        return PathEvent.BAD
    if seen.category == "rate_limited":
        return PathEvent.SLOW
    if seen.category in NOT_OURS:
        return PathEvent.NEUTRAL
    if seen.category in ANSWERED or seen.blame in ("recipient", "content", "sender"):
        return PathEvent.ANSWERED
    return PathEvent.BAD


def _permanent(result: Result, seen: Classification | None, orders: Orders) -> bool:
    if result.code is None or (result.error is not None and result.stage != "dns"):
        return False  # no reply to judge by: the network failed, not the mail
    if result.stage in HANDSHAKE and result.stage != "dns":
        return False  # P2, P4: the host or our credentials, another time or another way
    if result.code // 100 != 5:
        return False  # P12: the first digit decides
    if result.stage == "dns" or seen is None or seen.retry == "no":
        return True
    return not orders.retry_hard  # "no retry on hard bounce": 5yz of any kind ends the job


def _uncertain(
    job: Job, retry: Retry, result: Result, source: Source, now: float, resent: bool
) -> Verdict:
    """N41. Sent again at most once: more copies help nobody whose server loses every reply."""
    reason = "uncertain: the connection ended after the final dot, before the reply"
    event = PathEvent.NEUTRAL if result.error == CUT else PathEvent.BAD
    if retry.uncertain != "resend" or resent:
        return Verdict(State.UNCERTAIN, event, reason=reason, stay_with=source.name)
    end = spacing.deadline(retry, job.accepted_at, job.expires_at)
    due = now + UNCERTAIN_WAIT
    return Verdict(
        State.UNCERTAIN,
        event,
        due_at=due if due < end else now,
        reason=reason,
        stay_with=source.name,
    )


def _later(
    job: Job,
    retry: Retry,
    result: Result,
    seen: Classification | None,
    category: str,
    event: PathEvent,
    source: Source,
    now: float,
    chance: float,
    provider: Provider | None,
    resent: bool,
) -> Verdict:
    number = job.attempts + 1
    blame = seen.blame if seen else "remote"
    hint = min(_hint(result, seen), MAX_HINT)
    # what may have arrived already keeps its way to the end (N41)
    layer = None if resent else _layer(result, seen, category, source, number)
    wait = max(
        spacing.step(retry, number),
        WAIT.get(category, 0.0),
        (provider.retry_min or 0.0) if provider else 0.0,
    )
    if layer is not None or category == "too_many_recipients":
        due = now + SOON  # P7: split and sent again at once; S35: another way within 5 s
    elif hint > 0:
        due = now + spacing.late(hint, retry.jitter, chance)
    else:
        due = now + spacing.jittered(wait, retry.jitter, chance)
    end = spacing.deadline(retry, job.accepted_at, job.expires_at)
    at = spacing.before(due, now, end, fixed=hint > 0)
    exhausted = retry.max_retries is not None and number > retry.max_retries
    if at is None or exhausted:
        why = f"after {number} attempts" if exhausted else "too old for another attempt"
        return Verdict(
            State.EXPIRED,
            event,
            reason=f"expired {why}; last: {_reason(result, category)}",
            category=category,
            blame=blame,
        )
    stays = layer is None and (resent or category in STAYS or blame == "recipient")
    return Verdict(
        State.DEFERRED,
        event,
        due_at=at,
        reason=_reason(result, category),
        stay_with=source.name if stays else None,
        layer=layer,
        category=category,
        blame=blame,
        path_until=now + hint if hint > 0 and event in (PathEvent.SLOW, PathEvent.BAD) else None,
    )


def _layer(
    result: Result, seen: Classification | None, category: str, source: Source, number: int
) -> str | None:
    """The failover layer that moves this job at once (S35), or None: it waits its schedule."""
    if number > FAST_MOVES:
        return None
    if source.kind != "mx" and result.stage in HANDSHAKE and result.stage != "dns":
        return "relay"
    if seen is not None and seen.retry == "other" and category not in STAYS:
        return "source"
    return None


def _hint(result: Result, seen: Classification | None) -> float:
    """Seconds the remote asked us to wait, 0 without a wish."""
    return result.retry_after or (seen.retry_after if seen else None) or 0.0


def _reason(result: Result, category: str) -> str:
    what = result.reply.strip() or result.error or "no reply"
    return f"{category} at {result.stage}: {what}"[:500]
