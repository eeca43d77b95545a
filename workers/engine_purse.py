"""What mails of a chunk that share every limit were granted together, and who stands at the gate."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from mailweir.contracts.job import Job
from mailweir.contracts.lifecycle import State
from workers.patience import Patience
from workers.throttle.layers import Ask
from workers.throttle.types import Grant


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a mail may not go now: the outcome of its job, no attempt spent."""

    state: State
    due_at: float | None
    reason: str


@dataclass(slots=True, eq=False)
class Purse:
    """Mails of one chunk that share every limit, and what was granted for them together."""

    ask: Ask
    chunk_id: int
    patience: Patience
    back: bool = False  # these were sent back before, to wait for a place
    jobs: dict[int, Job] = field(default_factory=dict)  # not at the remote yet
    grant: Grant | None = None
    layer: str | None = None  # that bound last: a newer grant may have met none
    left: int = 0
    good_until: float = 0.0  # policy time until which the tokens may be used
    promised: deque[float] = field(default_factory=deque)  # when more tokens, ours too, are there
    places: deque[float] = field(default_factory=deque)  # for those without a token
    cleared: dict[int, tuple[float, str | None]] = field(default_factory=dict)

    def short(self, arrived: int, waited: int, now: float) -> bool:
        """Whether these need tokens that are not there, or too old."""
        old = bool(self.left or self.promised) and now > self.good_until
        return old or self.asks(arrived, waited, now) > 0

    def asks(self, arrived: int, waited: int, now: float) -> int:
        """Tokens to ask for. Who waited for a place asks again; a newcomer may take a place that was
        given for it before."""
        while self.places and self.places[0] <= now:
            self.places.popleft()
        while self.promised and self.promised[0] <= now:
            self.promised.popleft()
            self.left += 1
        arrived = max(0, arrived - len(self.promised))
        waited = min(waited, arrived)
        if self.left >= arrived or (
            self.left >= waited and self.left + len(self.places) >= arrived
        ):
            return 0
        if self.grant is not None and self.grant.places:
            return arrived - self.left  # the others have their places: no second one for them
        return max(arrived, len(self.jobs)) - self.left


@dataclass(slots=True)
class Entry:
    """A mail at the gate: one question of it, until it is answered."""

    job: Job
    purse: Purse
    said: asyncio.Future[Refusal | None] = field(repr=False)
    waited: bool = False
    paid: Grant | None = None  # whose promised token is its own, from ``place`` on
    place: float = 0.0  # 0: it may go

    def answer(self, said: Refusal | None) -> None:
        """Tell who waits, unless it went away."""
        if not self.said.done():
            self.said.set_result(said)
