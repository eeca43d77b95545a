"""How a simulated provider answers: settings one may change while it runs, and the pure decisions.

``now`` is policy seconds and ``chance`` a number in 0..1, both arguments, so a test can replay any of it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field

import msgspec


class Behaviour(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a provider does. Shares are 0..1, times policy seconds, rates per minute."""

    connections: int = 50  # at once, per client IP; more get 421
    per_connection: int = 0  # messages before 421 and close; 0: any number
    rate: int = 0  # messages a minute per client IP; 0: any number
    unknown: float = 0.0  # share of addresses that do not exist (by hash, stable)
    full: float = 0.0  # share of mailboxes that are full
    greylist: float = (
        0.0  # seconds a new (client, sender domain, recipient) triplet must wait; 0: off
    )
    outage: float = 0.0  # share of sessions that fail
    outage_mode: str = "tempfail"  # tempfail (421) | refuse (close at once) | silent (no answer)
    outage_hosts: tuple[int, ...] = ()  # which of the provider's hosts fail; empty: all
    slow: float = 0.0  # real seconds before each reply
    slow_dot: float = 0.0  # real seconds before the reply to the final dot
    after_dot: str = "reply"  # reply | reset | silence: what follows a recorded message
    soft: dict[str, float] = msgspec.field(
        default_factory=dict
    )  # client IP -> share of MAIL deferred for its reputation (451), evenly spread
    replies: dict[str, str] = msgspec.field(
        default_factory=dict
    )  # stage -> raw reply to give instead
    size: int = 52_428_800  # announced SIZE, bytes
    extensions: tuple[str, ...] = ("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")


@dataclass(slots=True)
class Memory:
    """What a provider remembers between sessions."""

    open: dict[str, int] = field(default_factory=dict)  # client IP -> connections
    recent: dict[str, deque[float]] = field(default_factory=dict)  # client IP -> times, last minute
    seen: dict[str, float] = field(default_factory=dict)  # greylisting triplet -> first seen
    owed: dict[str, float] = field(default_factory=dict)  # client IP -> soft bounces due to it


def fraction(address: str, salt: str) -> float:
    """A stable number in 0..1 for an address: the same mailbox is unknown every time."""
    digest = hashlib.sha256(f"{salt}:{address}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def at_connect(
    behaviour: Behaviour, memory: Memory, client: str, host: int, chance: float
) -> str | None:
    """The banner's refusal, ``"close"``, ``"silent"``, or None to greet."""
    if (
        behaviour.outage
        and (not behaviour.outage_hosts or host in behaviour.outage_hosts)
        and chance < behaviour.outage
    ):
        if behaviour.outage_mode == "refuse":
            return "close"
        if behaviour.outage_mode == "silent":
            return "silent"
        return "421 4.3.2 Service not available, try again later"
    if memory.open.get(client, 0) > behaviour.connections:
        return "421 4.7.0 Too many concurrent connections from your address"
    return behaviour.replies.get("connect")


def at_mail(behaviour: Behaviour, memory: Memory, client: str, sent: int, now: float) -> str | None:
    """The refusal of MAIL FROM, or None. Counts the message against the client's rate."""
    if behaviour.per_connection and sent >= behaviour.per_connection:
        return "421 4.7.0 Max message per connection reached, closing transmission channel"
    memory.owed[client] = memory.owed.get(client, 0.0) + behaviour.soft.get(client, 0.0)
    if memory.owed[client] >= 1.0:
        memory.owed[client] -= 1.0
        return (
            f"451 4.7.650 The mail server [{client}] has been temporarily rate limited due to IP "
            "reputation. For e-mail delivery information, see https://aka.ms/postmaster (S775)"
        )
    if behaviour.rate:
        times = memory.recent.setdefault(client, deque())
        while times and times[0] <= now - 60:
            times.popleft()
        if len(times) >= behaviour.rate:
            return (
                "421 4.7.28 Our system has detected an unusual rate of mail originating from your "
                "IP address. Try again in 60 seconds"
            )
        times.append(now)
    return behaviour.replies.get("mail")


def at_rcpt(
    behaviour: Behaviour, memory: Memory, client: str, sender: str, recipient: str, now: float
) -> str | None:
    """The refusal of RCPT TO, or None. ``nouser*`` and ``full*`` are always what they say."""
    address = recipient.lower()
    local = address.partition("@")[0]
    if local.startswith("nouser") or fraction(address, "unknown") < behaviour.unknown:
        return "550 5.1.1 The email account that you tried to reach does not exist"
    if local.startswith("full") or fraction(address, "full") < behaviour.full:
        return "452 4.2.2 The email account that you tried to reach is over quota"
    if behaviour.greylist:
        triplet = f"{client}|{sender.rpartition('@')[2].lower()}|{address}"
        first = memory.seen.setdefault(triplet, now)
        if now - first < behaviour.greylist:
            left = max(1, round(behaviour.greylist - (now - first)))
            return f"451 4.7.1 Greylisted, please try again in {left} seconds"
    return behaviour.replies.get("rcpt")
