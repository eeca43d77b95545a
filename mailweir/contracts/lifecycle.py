"""The life of a job as one table: its states and the moves allowed between them.

The spool writes no move that is not here (its conformance suite checks), the console shows these
words, and ``docs/lifecycle.md`` is drawn from this table.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job is. Glossary words; ``WAITING`` ones have a due time, ``FINAL`` ones never move."""

    ACCEPTED = "accepted"  # committed by a door, not yet looked at
    HELD = "held"  # we wait: throttle, cap, pause, window; no attempt spent
    DUE = "due"  # given back without an attempt, may be routed at once
    DISPATCHED = "dispatched"  # handed to a bucket queue under a fence (its chunk's id)
    SENDING = "sending"  # taken by a worker under a lease; the chunk's row says so, not the job's
    DEFERRED = "deferred"  # the remote said later; an attempt was spent
    UNCERTAIN = "uncertain"  # the connection died after the final dot
    SENT = "sent"  # the remote answered 250 to the final dot
    BOUNCED = "bounced"  # finally refused by the remote
    EXPIRED = "expired"  # age or retries exhausted
    REFUSED = "refused"  # ended by us before any attempt, with a reason
    CANCELLED = "cancelled"  # the submitter took it back in time
    DEAD_LETTER = "dead_letter"  # no code could handle it; kept and shown


class Mark(StrEnum):
    """What later feedback adds to a sent (or uncertain, or bounced) job; marks only accumulate."""

    DELIVERED = "delivered"
    COMPLAINED = "complained"
    UNSUBSCRIBED = "unsubscribed"
    OPENED = "opened"
    CLICKED = "clicked"


_S = State
MOVES: dict[State, frozenset[State]] = {
    _S.ACCEPTED: frozenset(
        {_S.HELD, _S.DISPATCHED, _S.REFUSED, _S.CANCELLED, _S.EXPIRED, _S.DEAD_LETTER}
    ),
    _S.HELD: frozenset(
        {_S.HELD, _S.DISPATCHED, _S.REFUSED, _S.CANCELLED, _S.EXPIRED, _S.DEAD_LETTER}
    ),
    _S.DUE: frozenset(
        {_S.HELD, _S.DISPATCHED, _S.REFUSED, _S.CANCELLED, _S.EXPIRED, _S.DEAD_LETTER}
    ),
    # EXPIRED: its time passed while it waited in the bucket queue
    _S.DISPATCHED: frozenset({_S.SENDING, _S.DUE, _S.CANCELLED, _S.EXPIRED, _S.DEAD_LETTER}),
    _S.SENDING: frozenset(
        {
            _S.SENT,
            _S.DEFERRED,
            _S.BOUNCED,
            _S.EXPIRED,
            _S.REFUSED,
            _S.HELD,
            _S.DUE,
            _S.UNCERTAIN,
            _S.DEAD_LETTER,
        }
    ),
    _S.DEFERRED: frozenset(
        {
            _S.HELD,
            _S.DISPATCHED,
            _S.REFUSED,
            _S.CANCELLED,
            _S.EXPIRED,
            _S.BOUNCED,
            _S.DEAD_LETTER,
        }
    ),
    # N41: resent on the same source, or resolved by a DSN or webhook, or left at its end.
    _S.UNCERTAIN: frozenset(
        {_S.HELD, _S.DISPATCHED, _S.SENT, _S.BOUNCED, _S.EXPIRED, _S.REFUSED, _S.CANCELLED}
    ),
    _S.SENT: frozenset({_S.BOUNCED}),  # an asynchronous DSN overrules the 250
    _S.BOUNCED: frozenset(),
    _S.EXPIRED: frozenset(),
    _S.REFUSED: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.DEAD_LETTER: frozenset({_S.DUE, _S.CANCELLED}),  # an operator tries again, or buries it
}

WAITING: frozenset[State] = frozenset({_S.ACCEPTED, _S.HELD, _S.DUE, _S.DEFERRED, _S.UNCERTAIN})
"""States in which a job may carry a due time. UNCERTAIN without one is left as it is (N41)."""

IN_FLIGHT: frozenset[State] = frozenset({_S.DISPATCHED, _S.SENDING})

FINAL: frozenset[State] = frozenset({_S.SENT, _S.BOUNCED, _S.EXPIRED, _S.REFUSED, _S.CANCELLED})
"""The work for the job has ended (a DSN may still turn SENT into BOUNCED)."""

CANCELLABLE: frozenset[State] = WAITING | {_S.DISPATCHED}


class IllegalMove(ValueError):
    """A state change the table does not allow; a defect of the caller, never of the job."""


def may_move(old: State, new: State) -> bool:
    """Whether the table allows ``old -> new``."""
    return new in MOVES[old]


def check_move(old: State, new: State) -> None:
    """Raise :class:`IllegalMove` unless the table allows ``old -> new``."""
    if new not in MOVES[old]:
        allowed = ", ".join(sorted(MOVES[old])) or "none"
        raise IllegalMove(f"a {old} job cannot become {new}; allowed: {allowed}")


def render_mermaid() -> str:
    """The table as a Mermaid state diagram, for ``docs/lifecycle.md``."""
    lines = ["stateDiagram-v2", "    [*] --> accepted"]
    for old in State:
        lines += [f"    {old} --> {new}" for new in State if new in MOVES[old]]
    lines += [f"    {state} --> [*]" for state in State if state in FINAL]
    return "\n".join(lines) + "\n"
