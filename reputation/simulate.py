"""Reputation in a closed loop with modelled providers: weeks in seconds, by the same policy code.

A scenario says who sends how much to whom and what the providers answer; the book decides caps, weights
and states, and the model spreads the next ten minutes' jobs as the router would: by weight x score^2,
within caps, the overflow to the other sources, the rest waits. Chance comes from the scenario's seed.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec

from mailweir.contracts.policy import Member, Policy, Pool, Source, Thresholds, Warmup
from mailweir.contracts.snapshot import PathState
from reputation.policy.book import Book, PathKey, Tried

DAY = 86400.0
HOUR = 3600.0
BEGIN = 20_454 * DAY  # a Thursday, 00:00 UTC
BUCKET = "marketing"


class BadScenario(ValueError):
    """The scenario file is not understood; the text names the field."""


class SourceModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A source of the scenario."""

    warm: bool = True
    weight: float = 1.0


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shares of attempts a provider answers so; complaints are shares of sent mail, a day later."""

    soft: float = 0.002
    deferred: float = 0.01
    hard: float = 0.003
    complaint: float = 0.0002
    outage: float = 0.0  # the provider's own trouble


class Change(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from", "end": "to"}
):
    """From day ``from`` to day ``to`` (fractions of days) other rates hold, everywhere or for the named
    source and provider. A rate given as two numbers goes from the first to the second."""

    start: float
    end: float
    source: str | None = None
    provider: str | None = None
    soft: float | tuple[float, float] | None = None
    deferred: float | tuple[float, float] | None = None
    hard: float | tuple[float, float] | None = None
    complaint: float | tuple[float, float] | None = None
    outage: float | tuple[float, float] | None = None
    demand: float | None = None  # factor


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scenario file."""

    name: str
    days: float
    sources: dict[str, SourceModel]
    demand: dict[str, int]  # provider -> jobs a day
    rates: Rates = Rates()
    changes: tuple[Change, ...] = ()
    warmup: Warmup = Warmup()
    thresholds: Thresholds = Thresholds()
    step: float = 600.0  # seconds between two looks
    seed: int = 1


class Row(msgspec.Struct, frozen=True):
    """One sample of a path: every hour, volume since the last one."""

    day: float  # days since the beginning
    source: str
    provider: str
    state: str
    cap: int | None
    volume: int
    score: float
    weight: float
    reason: str


class Result(msgspec.Struct, frozen=True):
    """What came out of a simulation."""

    name: str
    rows: tuple[Row, ...]
    sent: int
    waiting: int  # jobs that found no room and wait at the end
    cap_exceeded: int  # jobs above a day's cap: 0, or the policy is broken
    moves: tuple[tuple[float, str, str, str], ...]  # (day, path, state, reason)


def load(text: str) -> Scenario:
    """A scenario from YAML. Raises :class:`BadScenario`."""
    import yaml

    try:
        return msgspec.convert(yaml.safe_load(text), Scenario)
    except (msgspec.ValidationError, yaml.YAMLError) as error:
        raise BadScenario(str(error)) from None


class _World:
    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.chance = random.Random(scenario.seed)
        members = tuple(Member(name, model.weight) for name, model in scenario.sources.items())
        self.policy = Policy(
            sources={n: Source(n, warm=m.warm) for n, m in scenario.sources.items()},
            pools={"main": Pool("main", members)},
            warmup=scenario.warmup,
            thresholds=scenario.thresholds,
        )
        self.book = Book(self.policy, scenario.demand)
        self.waiting: dict[str, float] = defaultdict(float)
        self.used_day: dict[tuple[str, str, int], int] = defaultdict(int)
        self.used_hour: dict[tuple[str, str, int], int] = defaultdict(int)
        self.complaints: list[tuple[float, PathKey, float]] = []
        self.sent = self.exceeded = 0
        self.volume: dict[tuple[str, str], int] = defaultdict(int)

    def rate(self, name: str, at: float, source: str, provider: str) -> float:
        day = (at - BEGIN) / DAY
        value = float(getattr(self.scenario.rates, name))
        for change in self.scenario.changes:
            if not change.start <= day < change.end:
                continue
            if change.source not in (None, source) or change.provider not in (None, provider):
                continue
            given = getattr(change, name)
            if isinstance(given, tuple):
                value = given[0] + (given[1] - given[0]) * (day - change.start) / (
                    change.end - change.start
                )
            elif given is not None:
                value = float(given)
        return value

    def demand(self, provider: str, at: float) -> float:
        day = (at - BEGIN) / DAY
        value = float(self.scenario.demand[provider])
        for change in self.scenario.changes:
            if (
                change.demand is not None
                and change.start <= day < change.end
                and change.provider in (None, provider)
            ):
                value *= change.demand
        return value

    def room(self, state: PathState, source: str, provider: str, at: float) -> float:
        if (
            state.state in ("suspended", "paused")
            or state.score < self.policy.thresholds.hold_below
        ):
            return 0
        room = math.inf
        if state.cap_day is not None:
            room = state.cap_day - self.used_day[source, provider, int(at // DAY)]
        if state.cap_hour is not None:
            room = min(room, state.cap_hour - self.used_hour[source, provider, int(at // HOUR)])
        return max(0.0, room)

    def spread(self, provider: str, at: float, paths: dict[str, PathState]) -> None:
        """Give the jobs of this step to sources; what finds no room waits."""
        self.waiting[provider] += self.demand(provider, at) * self.scenario.step / DAY
        jobs = int(self.waiting[provider])
        rooms: dict[str, float] = {}
        weights: dict[str, float] = {}
        states: dict[str, PathState] = {}
        for name, model in self.scenario.sources.items():
            state = (
                paths.get(f"{name}|{provider}|{BUCKET}")
                or paths.get(f"{name}|other|{BUCKET}")
                or PathState()
            )
            states[name] = state
            rooms[name] = self.room(state, name, provider, at)
            weights[name] = model.weight * state.weight * state.score**2
        given = dict.fromkeys(rooms, 0)
        left = jobs
        while left > 0:
            open_ = [n for n in rooms if given[n] < rooms[n] and weights[n] > 0]
            total = sum(weights[n] for n in open_)
            before = left
            for name in open_:
                part = before * weights[name] / total
                count = int(part) + (self.chance.random() < part % 1.0)
                count = int(min(count, left, rooms[name] - given[name]))
                given[name] += count
                left -= count
            if left == before:
                break  # nobody has room, or chance gave nothing: the jobs wait
        self.waiting[provider] -= sum(given.values())
        tried: list[Tried] = []
        for name, count in given.items():
            tried += self._deliver(PathKey(name, provider, BUCKET), count, at, states[name])
        for each in sorted(tried, key=lambda t: t.at):
            self.book.tried(each)

    def _deliver(self, key: PathKey, count: int, at: float, state: PathState) -> list[Tried]:
        tried: list[Tried] = []
        soft, deferred, hard, complaint, outage = (
            self.rate(name, at, key.source, key.provider)
            for name in ("soft", "deferred", "hard", "complaint", "outage")
        )
        for i in range(count):
            when = at + self.scenario.step * i / count
            draw = self.chance.random()
            if draw < soft:
                how = ("deferred", "rate_limited", "source")
            elif draw < soft + deferred:
                how = ("deferred", "greylisted", "remote")
            elif draw < soft + deferred + hard:
                how = ("bounced", "invalid_recipient", "recipient")
            elif draw < soft + deferred + hard + outage:
                how = ("deferred", "server_error", "remote")
            else:
                how = ("sent", "", "")
                self.sent += 1
                if self.chance.random() < complaint:
                    self.complaints.append((when + DAY, key, when))
            tried.append(Tried(when, key, 1, *how, 0.5))
        self.volume[key.source, key.provider] += count
        self.used_hour[key.source, key.provider, int(at // HOUR)] += count
        day = (key.source, key.provider, int(at // DAY))
        self.used_day[day] += count
        if state.cap_day is not None and self.used_day[day] > state.cap_day and count:
            self.exceeded += 1
        return tried

    def complain(self, now: float) -> None:
        due = [c for c in self.complaints if c[0] <= now]
        self.complaints = [c for c in self.complaints if c[0] > now]
        for _, key, sent in due:
            self.book.complained(key, sent)


def run(scenario: Scenario, progress: Callable[[float], None] = lambda day: None) -> Result:
    """Run a scenario to its end; ``progress`` is told the day every simulated hour."""
    world = _World(scenario)
    rows: list[Row] = []
    moves: list[tuple[float, str, str, str]] = []
    known: dict[str, str] = {}
    paths: dict[str, PathState] = world.book.publish(BEGIN, {})
    at, end, next_row = BEGIN, BEGIN + scenario.days * DAY, BEGIN
    while at < end:
        for provider in scenario.demand:
            world.spread(provider, at, paths)
        at += scenario.step
        world.complain(at)
        world.book.look(at)
        paths = world.book.publish(at, {})
        day = (at - BEGIN) / DAY
        for name, state in paths.items():
            if not name.endswith(f"|{BUCKET}"):
                continue  # nothing is sent in the others
            if known.get(name, state.state) != state.state:
                why = state.reasons[0] if state.reasons else ""
                moves.append((day, name, state.state, why))
            known[name] = state.state
        if at >= next_row:
            next_row += HOUR
            rows += _rows(world, paths, day)
            progress(day)
    waiting = int(sum(world.waiting.values()))
    return Result(scenario.name, tuple(rows), world.sent, waiting, world.exceeded, tuple(moves))


def _rows(world: _World, paths: dict[str, PathState], day: float) -> list[Row]:
    out = []
    for source in world.scenario.sources:
        for provider in world.scenario.demand:
            state = paths.get(f"{source}|{provider}|{BUCKET}") or PathState()
            why = state.reasons[0] if state.reasons else ""
            volume = world.volume.pop((source, provider), 0)
            out.append(
                Row(
                    day,
                    source,
                    provider,
                    state.state,
                    state.cap_day,
                    volume,
                    state.score,
                    state.weight,
                    why,
                )
            )
    return out


def daily(result: Result) -> list[dict[str, Any]]:
    """The rows of a result summed up by day."""
    found: dict[tuple[int, str, str], dict[str, Any]] = {}
    for row in result.rows:
        # the sample taken at midnight closes the day before
        day = max(1, math.ceil(round(row.day, 6)))
        entry = found.setdefault(
            (day, row.source, row.provider),
            # the cap of the day is the one it began with
            {
                "day": day,
                "source": row.source,
                "provider": row.provider,
                "volume": 0,
                "cap": row.cap,
            },
        )
        entry["volume"] += row.volume
        entry |= {"state": row.state, "score": row.score, "weight": row.weight}
        entry["reason"] = row.reason
    return list(found.values())
