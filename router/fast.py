"""Reads how each path does right now; workers write it, in ``book.lua`` only (keys.path_state)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import redis
from redis.exceptions import RedisError

from mailweir.contracts.snapshot import FastPath, FastState
from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock

LOOK_EVERY = 0.1  # real seconds; a batch older than that reads again
PROBE_LOOK = 10.0  # policy seconds until a path that somebody probes is looked at again
FIELDS = ("phase", "until", "back", "rate", "hold", "day", "day_n", "hour", "hour_n")
DAY, HOUR = 86_400, 3_600  # policy seconds

# The trickle and ramp of a path on its way back (S37), as book.lua and take.lua do them.
TRICKLE_SECONDS, TRICKLE_RATE = 180.0, 0.1
RAMP_SECONDS, RAMP_START = 900.0, 0.1


class FastReader:
    """The fast state for a batch; without Redis an empty one (only policy limits then)."""

    def __init__(self, client: redis.Redis, clock: Clock) -> None:
        self._redis = client
        self._clock = clock
        self._next = 0.0
        self._state = FastState(0, {})

    def get(self) -> FastState:
        """The state now, at most :data:`LOOK_EVERY` old."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LOOK_EVERY
            try:
                found_members = cast("set[bytes]", self._redis.smembers(keys.PATH_INDEX))
                members = [member.decode() for member in found_members]
                pipe = self._redis.pipeline(transaction=False)
                for member in members:
                    pipe.hmget(keys.PATH_PREFIX + member, FIELDS)
                    pipe.exists(keys.PROBE_PREFIX + member)
                    pipe.hget(keys.bucket_tokens(keys.path_layer(member)), "place")
                answers = pipe.execute()
                found = list(zip(answers[::3], answers[1::3], answers[2::3], strict=True))
            except RedisError:
                members, found = [], []
            now = self._clock.now()
            paths = {
                member: path(values, now, probed=bool(probed), place=float(place or 0.0))
                for member, (values, probed, place) in zip(members, found, strict=True)
            }
            self._state = FastState(self._state.version + 1, paths)
        return self._state


def path(
    values: Sequence[bytes | None], now: float, *, probed: bool = False, place: float = 0.0
) -> FastPath:
    """One path's state from the fields of :data:`FIELDS`, at policy time ``now``. While somebody probes
    a half-open path (``probed``), it is open for everybody else. ``place``: the time of the last
    place given to a mail that waits for a token. On its way back a path takes what it has tokens
    for, and another way the rest (S35, S37): whoever would stand behind that place goes there."""
    phase = (values[0] or b"closed").decode()
    until, back, rate, hold, day, day_n, hour, hour_n = (
        float(value) if value is not None else None for value in values[1:]
    )
    breaker, open_until, free = "closed", None, hold if hold is not None and hold > now else 0.0
    if phase == "open" and until is not None:
        breaker, open_until = ("open", until) if now < until else ("half_open", until)
        if breaker == "half_open" and probed:
            breaker, open_until = "open", now + PROBE_LOOK
    elif phase == "back" and back is not None:
        gone = now - back
        if gone < TRICKLE_SECONDS + RAMP_SECONDS and place > now:
            free = max(free, place)
        if gone < TRICKLE_SECONDS:
            rate = min(rate, TRICKLE_RATE) if rate is not None else TRICKLE_RATE
        elif rate is not None and gone < TRICKLE_SECONDS + RAMP_SECONDS:
            rate *= RAMP_START + (1 - RAMP_START) * (gone - TRICKLE_SECONDS) / RAMP_SECONDS
    return FastPath(
        rate=rate,
        breaker=breaker,
        open_until=open_until,
        used_day=int(day_n or 0) if day == now // DAY else 0,
        used_hour=int(hour_n or 0) if hour == now // HOUR else 0,
        available_at=free,
    )
