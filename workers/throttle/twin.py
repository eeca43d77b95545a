"""The throttle in memory: the scripts' oracle, and a worker's local share while Redis is away."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from workers.policy import adaptive, breaker, tokens
from workers.policy.outcome import PathEvent
from workers.throttle.layers import Ask, Layer
from workers.throttle.types import Booking, Grant, places

PROBE_LEASE = 60.0
"""Real seconds a probe may take before another may go: a refused connection answers at once, a
silent one within the transport's phase timeouts."""


@dataclass(slots=True)
class _Rate:
    tokens: float
    updated: float
    place: float = 0.0
    front: float = 0.0


@dataclass(slots=True)
class _Path:
    breaker: breaker.Breaker = field(default_factory=breaker.Breaker)
    live: adaptive.Live = field(default_factory=adaptive.Live)
    hold: float = 0.0
    shut: float = 0.0  # when it was last shut: opened, or asked to wait
    probe: str | None = None
    probe_at: float = 0.0
    probe_until: float = 0.0


class MemoryThrottle:
    """One process' throttle. ``now`` gives policy seconds; buckets are empty at its creation."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        speed: float = 1.0,
        recounted: bool = True,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._now = now
        self._speed = speed
        self._chance = chance
        self.recounted = recounted
        self.since = now()
        self._rates: dict[str, _Rate] = {}
        self.counts: dict[str, int] = {}
        self._paths: dict[str, _Path] = {}

    async def take(
        self,
        asks: list[tuple[Ask, int]],
        waiting: Sequence[int] = (),
        back: Sequence[bool] = (),
    ) -> list[Grant]:
        """See :class:`Limiter`."""
        wait, backs = waiting or [0] * len(asks), back or [False] * len(asks)
        return [self._take(ask, n, w, b) for (ask, n), w, b in zip(asks, wait, backs, strict=True)]

    async def give_back(self, grant: Grant, count: int) -> None:
        """See :class:`Limiter`."""
        path = self._path(grant.ask)
        if path.probe == grant.token:
            path.probe = None
        for layer in grant.ask.layers:
            if layer.kind == "count":
                key = layer.slot_key(grant.at)
                if key in self.counts:
                    self.counts[key] -= count
            elif layer.key in self._rates:
                rate = self._rates[layer.key]
                rate.tokens = min(layer.a, rate.tokens + count)

    async def book(self, bookings: list[Booking]) -> None:
        """See :class:`Limiter`."""
        now = self._now()
        for booking in bookings:
            path = self._paths.setdefault(f"{booking.source}|{booking.provider}", _Path())
            chance = self._chance()
            for event, began in booking.events:
                was = path.breaker
                obeyed = event is PathEvent.SLOW and was.phase is not breaker.Phase.OPEN
                if obeyed and not adaptive.spent(path.live, booking.ceiling):
                    judged = PathEvent.ANSWERED  # the rate obeys; no failure for the breaker
                else:
                    judged = event
                path.breaker = breaker.book(was, judged, now, chance, began)
                if path.breaker.phase is breaker.Phase.OPEN and path.breaker.until != was.until:
                    path.shut = now
                if was.phase is breaker.Phase.OPEN and path.breaker != was:
                    path.probe = None
                if event in (PathEvent.GOOD, PathEvent.SLOW):
                    path.live = adaptive.book(
                        path.live, booking.ceiling, slow=event is PathEvent.SLOW
                    )
            if booking.hold > max(path.hold, now):
                path.hold, path.shut = booking.hold, now

    def state(self, source: str, provider: str) -> tuple[breaker.Breaker, adaptive.Live]:
        """A path's state, for tests."""
        path = self._paths.get(f"{source}|{provider}", _Path())
        return path.breaker, path.live

    def _path(self, ask: Ask) -> _Path:
        return self._paths.setdefault(f"{ask.source}|{ask.provider}", _Path())

    def _take(self, ask: Ask, n: int, waiting: int, back: bool) -> Grant:
        now, token = self._now(), secrets.token_hex(8)
        path = self._path(ask)
        state = breaker.closed_when_done(path.breaker, now)
        wait = path.hold if path.hold > now else None
        shut = None if wait is None else path.shut
        probe = False
        if state.phase is breaker.Phase.OPEN:
            if not breaker.probing(state, now):
                wait, shut = max(wait or 0.0, state.until), path.shut
            elif path.probe is not None and path.probe_until > now:
                wait = max(wait or 0.0, now + tokens.AHEAD)
                shut = max(shut or 0.0, path.probe_at)
            else:
                probe = True
        granted = 0 if wait is not None else min(n, 1) if probe else n
        usual = state.phase is breaker.Phase.CLOSED and wait is None
        reach = min(n, waiting) if usual else 0
        forms: list[tokens.Shape] = []
        for layer in ask.layers:
            form = self._form(layer, path, state, now)
            forms.append(form)
            if layer.kind == "count":
                used = self.counts.get(layer.slot_key(now), 0)
                room = max(0, int(layer.a) - used) if self.recounted else 0
                granted, reach = min(granted, room), min(reach, room)
            else:
                there = self._refill(layer, form, now).tokens
                granted = min(granted, max(0, tokens.whole(there)))
                reach = min(reach, tokens.whole(there + tokens.SOON * form.rate))
        promised = self._promised(ask, forms, granted, max(0, reach - granted), now)
        taken = granted + len(promised)
        binding, available = self._spend(ask, forms, taken, now, wait)
        if probe and granted == 1:
            path.probe, path.probe_at = token, now
            path.probe_until = now + PROBE_LEASE * self._speed
            shut = now if n > 1 else shut
        if probe and granted < n:
            binding = 0
            available = max(available, now + tokens.AHEAD)
        later: tuple[float, ...] = ()
        if n > taken:
            queue = binding if binding is not None else 0
            if ask.layers[queue].kind == "count":
                queue = 0
            rate = self._rates[ask.layers[queue].key]
            step, cap = 1.0 / forms[queue].rate, available + tokens.AHEAD
            first = min(max(rate.front if back else rate.place, available), cap)
            behind = min(first + (n - taken) * step, cap)
            if back:
                rate.front = behind
            else:
                rate.place = behind
            later = places(first, step, cap, n - taken)
        name = ask.layers[binding].name if binding is not None and n > taken else None
        alone = probe and granted == 1
        return Grant(ask, granted, name, available, later, now, alone, token, True, promised, shut)

    def _promised(
        self, ask: Ask, forms: list[tokens.Shape], granted: int, count: int, now: float
    ) -> tuple[float, ...]:
        """When ``count`` tokens behind those granted are there on every layer, evenly spread."""
        if not count:
            return ()
        held = [
            (self._rates[layer.key], form)
            for layer, form in zip(ask.layers, forms, strict=True)
            if layer.kind != "count"
        ]

        def there(number: int) -> float:
            return max(now, *(r.updated + (number - r.tokens) / f.rate for r, f in held))

        first, last = there(granted + 1), there(granted + count)
        gap = (last - first) / (count - 1) if count > 1 else 0.0
        return tuple(first + k * gap for k in range(count))

    def _spend(
        self, ask: Ask, forms: list[tokens.Shape], granted: int, now: float, wait: float | None
    ) -> tuple[int | None, float]:
        """Take from every layer; the layer that frees last, and when."""
        binding, available = None, now
        for i, layer in enumerate(ask.layers):
            free = now
            if layer.kind == "count":
                key = layer.slot_key(now)
                if granted:
                    self.counts[key] = self.counts.get(key, 0) + granted
                if not self.recounted:
                    free = now + self._speed
                elif self.counts.get(key, 0) >= layer.a:
                    free = (now // layer.b + 1) * layer.b
            else:
                rate = self._rates[layer.key]
                rate.tokens -= granted
                held = tokens.Bucket(rate.tokens, rate.updated)
                free = max(now, tokens.available_at(held, forms[i], rate.updated))
                if layer.kind == "path" and wait is not None:
                    free = max(free, wait)
            if free > available:
                binding, available = i, free
        return binding, available

    def _refill(self, layer: Layer, form: tokens.Shape, now: float) -> _Rate:
        rate = self._rates.setdefault(layer.key, _Rate(0.0, self.since))
        rate.tokens, rate.updated = tokens.refill(
            tokens.Bucket(rate.tokens, rate.updated), form, now
        )
        return rate

    def _form(self, layer: Layer, path: _Path, state: breaker.Breaker, now: float) -> tokens.Shape:
        if layer.kind != "path":
            return tokens.Shape(layer.a, layer.b)
        if breaker.trickling(state, now):
            form = tokens.Shape(1.0, min(layer.b, breaker.TRICKLE))
        else:
            share = breaker.share(state, now) if state.phase is breaker.Phase.BACK else 1.0
            form = tokens.Shape(max(1.0, float(int(layer.a * share))), layer.b * share)
        live = path.live.rate
        return form if live is None else tokens.Shape(form.depth, min(form.rate, live))
