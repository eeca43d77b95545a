"""A worker's heartbeat: that it lives, which queues it serves, which sources it reaches (S34)."""

from __future__ import annotations

import msgspec

GONE = 10.0
"""Real seconds after which a silent worker counts as gone; it beats every two."""


class Heartbeat(msgspec.Struct, frozen=True):
    """What a worker says of itself. A source of the policy is in ``sources`` or in ``unreachable``; one in
    neither was not known to the worker yet, so nothing is known of it."""

    at: float  # real seconds (Unix) by the worker's clock
    queues: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()  # it can send by these
    unreachable: tuple[str, ...] = ()  # it cannot: another host's address, another region
    region: str | None = None
    pid: int = 0
    concurrency: int = 0  # chunks at once
    chunks: int = 0  # it works on now
    stopping: bool = False  # finishes what it has, takes no more

    def alive(self, now: float) -> bool:
        """Whether the worker was heard of lately; ``now``: real seconds."""
        return now - self.at < GONE


_decode = msgspec.json.Decoder(Heartbeat).decode


def read_beat(body: bytes | str) -> Heartbeat | None:
    """The heartbeat in ``body``; None for one we cannot read: another release may beat differently while
    a fleet is replaced, and nobody must fall over it."""
    try:
        return _decode(body)
    except msgspec.DecodeError:
        return None
