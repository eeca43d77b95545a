"""The routing snapshot: the immutable, versioned table the router decides from.

Written only by reputation, at most once a second; sparse (named providers and busy unknown ones; the
rest share ``other``); under 1 MiB encoded. Pure data: nothing here is looked up elsewhere.
"""

from __future__ import annotations

import msgspec

OTHER = "other"
"""The provider name that stands for every provider the snapshot does not list."""
STOPPED = frozenset({"suspended", "paused"})
"""States of a path that takes nothing, until their time is over."""


class PathState(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one path (source x provider x bucket) stands."""

    score: float = 0.8  # 0..1; starts provisional
    weight: float = 1.0  # multiplies the source's share inside its pool
    state: str = (
        "warm"  # cold | warming | warm | slowed | probation | suspended | recovering | paused
    )
    cap_day: int | None = None  # jobs a day while warming; None: no cap
    cap_hour: int | None = None
    until: float | None = None  # suspended or paused until (policy seconds)
    confidence: float = 0.0  # 0..1
    reasons: tuple[str, ...] = ()

    def stopped(self, now: float) -> bool:
        """Whether nothing may go this way at policy time ``now``: suspended or paused, and not over yet."""
        return self.state in STOPPED and (self.until is None or self.until > now)


class Snapshot(msgspec.Struct, frozen=True):
    """Paths keyed ``source|provider|bucket``; a missing key falls back to ``source|other|bucket``."""

    version: int
    created_at: float
    policy_version: int
    paths: dict[str, PathState]
    paused: dict[str, float] = msgspec.field(default_factory=dict)
    # operator pauses: "pool:x", "source:x", "bucket:x", "provider:x", "tenant:x" -> until

    def path(self, source: str, provider: str, bucket: str) -> PathState:
        """The state of a path; an unknown one is a warm path with the provisional score."""
        paths = self.paths
        return (
            paths.get(f"{source}|{provider}|{bucket}")
            or paths.get(f"{source}|{OTHER}|{bucket}")
            or _UNKNOWN
        )


class FastPath(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a path does right now, read from Redis once per batch: rate, breaker, tokens."""

    rate: float | None = None  # live rate, jobs per second; None: only the policy's limit
    breaker: str = "closed"  # closed | open | half_open
    open_until: float | None = None  # policy seconds; next probe
    used_day: int = 0
    used_hour: int = 0
    available_at: float = 0.0  # policy seconds at which the next token is likely


class FastState(msgspec.Struct, frozen=True):
    """The frozen fast state of one batch; ``version`` is recorded beside the snapshot's as ``v.n``."""

    version: int
    paths: dict[str, FastPath]  # key "source|provider"

    def path(self, source: str, provider: str) -> FastPath:
        """The live state of a path; an unseen path is closed with nothing used."""
        return self.paths.get(f"{source}|{provider}", _FAST_UNKNOWN)


_UNKNOWN = PathState()
_FAST_UNKNOWN = FastPath()
