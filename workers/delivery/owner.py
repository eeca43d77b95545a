"""Whose mails a delivery carries: asked before each of them begins, told how each of them ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from workers.delivery.types import Envelope, Result


class Booked(Protocol):
    """Whether the beginning of an envelope is written down where a crash of ours cannot take it."""

    done: bool

    async def wait(self) -> None:
        """Until it is."""
        ...


class Owner:
    """The seam between a transport and whoever uses it. What these methods raise ends the delivery.

    Before an envelope's commands are written, and again each time it must begin anew on another
    connection, :meth:`at_once` is asked, then, where it does not know, :meth:`ask`. One that may not go
    gets no result: it has been dealt with.
    """

    def at_once(self, envelope: Envelope) -> bool | None:
        """Whether it may go, where that is known without waiting; None: :meth:`ask`."""
        return None

    async def ask(self, envelope: Envelope) -> bool:
        """Whether it may go."""
        return True

    def begins(self, envelope: Envelope) -> Booked | None:
        """Its commands go out. Its content follows only when it is booked: book before you act."""
        return None

    def still(self, envelope: Envelope) -> bool:
        """Whether its content may go: asked once more when it is booked, right before. One that may not has
        been dealt with."""
        return True

    def unsent(self, envelope: Envelope) -> None:
        """It began, and the end of its content never went out: as if it had not begun. It begins anew, or
        the delivery is being cut short."""

    def ended(self, result: Result) -> None:
        """Called exactly once for every envelope that was let go, as soon as its fate is known; not for
        one that :meth:`still` kept back, nor one that is unsent when the delivery is cut short."""
        raise NotImplementedError

    async def before_dial(self, waiting: Sequence[Envelope]) -> bool:
        """Asked before a connection is opened for those who wait for it; False where none of them may go
        any more, and each has been dealt with."""
        return True

    def crowded(self, envelopes: Sequence[Envelope]) -> None:
        """No connection came free for these in time: they are the owner's again."""


class PlainOwner(Owner):
    """An owner made of functions."""

    def __init__(
        self,
        ended: Callable[[Result], None],
        ask: Callable[[Envelope], Awaitable[bool]] | None = None,
        still: Callable[[Envelope], bool] | None = None,
    ) -> None:
        self._ended, self._ask, self._still = ended, ask, still

    async def ask(self, envelope: Envelope) -> bool:
        """See :class:`Owner`."""
        return self._ask is None or await self._ask(envelope)

    def still(self, envelope: Envelope) -> bool:
        """See :class:`Owner`."""
        return self._still is None or self._still(envelope)

    def ended(self, result: Result) -> None:
        """See :class:`Owner`."""
        self._ended(result)
