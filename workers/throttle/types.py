"""What a throttle is asked and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from workers.policy import tokens
from workers.policy.outcome import PathEvent
from workers.throttle.layers import Ask


class Grant(NamedTuple):
    """Tokens taken from every layer, and when the others may come back. Times are policy seconds."""

    ask: Ask
    granted: int
    layer: str | None  # the binding layer's name, None when nothing was missing
    available: float  # one more token is there on every layer
    places: tuple[float, ...]  # a place in time for each asker that got none
    at: float  # of this answer
    probe: bool  # the grant is the one probe of a half-open path
    token: str  # of the grant
    local: bool = False  # from the local share, Redis was away
    promised: tuple[
        float, ...
    ] = ()  # when more tokens, taken too, are there: not to be used before
    shut: float | None = None  # since when the path may not be tried at all; None: only too fast


class Booking(NamedTuple):
    """What attempts said of one path."""

    source: str
    provider: str
    ceiling: float  # the policy's rate, jobs a policy second
    events: tuple[tuple[PathEvent, float], ...]  # and when each attempt began
    hold: float = 0.0  # the remote named a time for the whole path


class Limiter(Protocol):
    """The seam: Redis and memory answer alike (tests/contract/throttle)."""

    async def take(
        self,
        asks: list[tuple[Ask, int]],
        waiting: Sequence[int] = (),
        back: Sequence[bool] = (),
    ) -> list[Grant]:
        """Take up to so many tokens for each ask; all layers of an ask or none. ``waiting``: how many of
        each ask's mails wait for a token; they may be promised one of the next ``tokens.SOON``. ``back``:
        which asks' mails have waited for a place before; should it be taken, they get one before
        newcomers."""
        ...

    async def give_back(self, grant: Grant, count: int) -> None:
        """Return ``count`` unused tokens."""
        ...

    async def book(self, bookings: list[Booking]) -> None:
        """Book what attempts said of their paths."""
        ...


def places(first: float, step: float, cap: float, missing: int) -> tuple[float, ...]:
    """Places of the askers not granted."""
    return tuple(tokens.places(first, step, missing, cap)) if missing > 0 else ()
