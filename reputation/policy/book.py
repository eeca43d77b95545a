"""The whole of reputation as one value: what is counted, how each path stands, what is published.

The manager feeds it rows and real time, the simulation feeds it made-up ones: the same code decides.
It holds no clock and does no I/O.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from mailweir.contracts.policy import Policy
from mailweir.contracts.snapshot import OTHER, PathState
from reputation.policy import counters, outage, standing, statistics, warmup, weights
from reputation.policy.counters import Counters, N
from reputation.policy.history import Habits, hour
from reputation.policy.score import Score, score
from reputation.policy.standing import Peers, Standing
from reputation.policy.states import State

LOOK_EVERY = 30.0  # policy seconds between two looks at a path without news
BUSY = 100.0  # jobs a day from which an unknown provider is listed by its own name
FORGET_AFTER = 2 * 86400.0  # an unknown provider's path without news
MAX_PATHS = 5000  # paths in a snapshot, busiest first: under 1 MiB
RESTLESS = frozenset({State.SUSPENDED, State.PROBATION, State.RECOVERING, State.SLOWED})
OUT = frozenset({State.SUSPENDED, State.PROBATION, State.RECOVERING})
MAX_REASONS = 4
RECENT = 5000  # failures at a provider that can be taken back when they turn out to be its own
TAKEN_BACK = 600.0  # policy seconds before a provider's trouble was recognised


class PathKey(NamedTuple):
    """Source x provider x bucket."""

    source: str
    provider: str
    bucket: str

    def __str__(self) -> str:
        return "|".join(self)


class Tried(NamedTuple):
    """The part of an attempt that reputation counts."""

    at: float
    key: PathKey
    number: int
    outcome: str
    category: str | None
    blame: str | None
    seconds: float


class Path(msgspec.Struct):
    """One path: its counts and its standing."""

    counters: Counters
    standing: Standing
    score: Score | None = None
    looked_at: float = -1e18
    news: bool = True
    half: tuple[int, int] = (0, 0)  # attempts and soft bounces of the last 30 minutes


class Book:
    """Mutable; one owner. ``named``: providers published by name even when quiet."""

    def __init__(self, policy: Policy, named: Iterable[str] = ()) -> None:
        self.paths: dict[PathKey, Path] = {}
        self.warm: dict[tuple[str, str], warmup.Warming] = {}
        self.habits: dict[str, Habits] = {}
        self.placement: dict[tuple[str, str], float] = {}  # (source, provider): share in the inbox
        self.listed: dict[str, str] = {}  # source -> blocklist that names it (own-source watch)
        self.faults: dict[str, tuple[str, ...]] = {}  # source -> its own names' failing checks
        self.watches: dict[str, outage.Watch] = {}  # provider -> its own sources' symptoms
        self._failures: dict[str, deque[Tried]] = defaultdict(lambda: deque(maxlen=RECENT))
        self.dirty: set[PathKey] = set()
        self._named = frozenset(named)
        self.policy = policy
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Obey another policy from now on."""
        self.policy = policy
        siblings: dict[str, set[str]] = defaultdict(set)
        for pool in policy.pools.values():
            names = {member.source for member in pool.members}
            for name in names:
                siblings[name] |= names
        self._siblings = {name: frozenset(found - {name}) for name, found in siblings.items()}
        self._cold = {name for name, source in policy.sources.items() if not source.warm}
        self._own = {name for name, source in policy.sources.items() if source.kind == "mx"}
        self._plans: dict[str, warmup.Plan] = {}

    # --- folding ------------------------------------------------------------------------------

    def tried(self, t: Tried) -> None:
        """Count one attempt. A failure that is the provider's counts for no path and no habit."""
        theirs = self._watched(t)
        for key in self._keys(t.key):
            path = self._path(key, t.at)
            if theirs:
                path.counters.last = max(path.counters.last, t.at)
            else:
                counters.count_attempt(
                    path.counters, t.at, t.number, t.outcome, t.category, t.blame
                )
            path.news = True
            self.dirty.add(key)
        if t.outcome in ("sent", "deferred", "bounced"):
            if not theirs:
                habits = self.habits.get(t.key.provider)
                if habits is None:
                    habits = self.habits[t.key.provider] = Habits()
                habits.note(t.at, t.outcome == "deferred" and t.category != "greylisted", t.seconds)
            if t.key.source in self._cold and self.policy.warmup.enabled:
                self._used(t)

    def _watched(self, t: Tried) -> bool:
        """Look at the attempt as a symptom; whether it is the provider's."""
        kind = outage.kind_of(t.outcome, t.category, t.blame)
        if kind is None or (self._own and t.key.source not in self._own):
            return False
        provider = t.key.provider
        w = self.watches.get(provider)
        if w is None:
            if not kind:
                return False
            w = self.watches[provider] = outage.Watch()
        outage.note(w, t.key.source, t.at, kind, 1.0 - self.policy.thresholds.delivery_rate)
        if kind or w.sick:
            self._decide(provider, w, t.at, alone=False)
        theirs = kind in w.sick
        if kind and not theirs:
            self._failures[provider].append(t)
        return theirs

    def _decide(self, provider: str, w: outage.Watch, now: float, *, alone: bool) -> None:
        """Whether the provider is in trouble; when it is found to be, what was counted against the
        paths in the last minutes is taken back."""
        before = w.sick
        w.sick = outage.decide(w, now, len(self._own), alone=alone or bool(before))
        new = [kind for kind in w.sick if kind not in before]
        if not new:
            return
        kept: list[Tried] = []
        for t in self._failures.pop(provider, ()):
            if outage.kind_of(t.outcome, t.category, t.blame) not in new:
                kept.append(t)
            elif t.at >= now - TAKEN_BACK:
                for key in self._keys(t.key):
                    path = self.paths.get(key)
                    if path is not None:
                        counters.take_back(path.counters, t.at, t.number, t.outcome, t.blame)
                        path.news = True
        self._failures[provider].extend(kept)

    def complained(self, key: PathKey, at: float) -> None:
        """Count a complaint about a mail sent by this path at ``at``."""
        for each in self._keys(key):
            counters.count_complaint(self._path(each, at).counters, at)
            self._path(each, at).news = True
            self.dirty.add(each)

    def bounced_late(self, key: PathKey, at: float) -> None:
        """Count a hard bounce reported after the 250."""
        for each in self._keys(key):
            counters.count_late_bounce(self._path(each, at).counters, at)
            self._path(each, at).news = True
            self.dirty.add(each)

    def _keys(self, key: PathKey) -> tuple[PathKey, ...]:
        if key.provider in self._named or key.provider in self.policy.providers:
            return (key,)
        return (key, PathKey(key.source, OTHER, key.bucket))

    def _path(self, key: PathKey, now: float) -> Path:
        path = self.paths.get(key)
        if path is None:
            cold = key.source in self._cold and self.policy.warmup.enabled
            start = standing.new(State.COLD if cold else State.WARM, now)
            path = self.paths[key] = Path(Counters(), start)
        return path

    def _used(self, t: Tried) -> None:
        for provider in {self._listed_as(t.key), t.key.provider}:
            plan = self.plan(provider)
            place = (t.key.source, provider)
            w = self.warm.get(place) or warmup.begin(plan, t.at)
            self.warm[place] = warmup.used(w, 1, max(t.at, w.day * warmup.DAY), plan)

    def _listed_as(self, key: PathKey) -> str:
        return key.provider if len(self._keys(key)) == 1 else OTHER

    def plan(self, provider: str) -> warmup.Plan:
        """The warmup plan of a provider."""
        if provider not in self._plans:
            self._plans[provider] = warmup.plan_for(self.policy.warmup, provider)
        return self._plans[provider]

    # --- judging ------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Judge every path with news, every restless one, and the others now and then."""
        due = [
            (key, path)
            for key, path in self.paths.items()
            if path.news or path.standing.state in RESTLESS or now - path.looked_at >= LOOK_EVERY
        ]
        for _, path in due:
            counters.advance(path.counters, now)
            half = counters.recent(path.counters, now, self.policy.thresholds.soft_seconds)
            path.half = (half[N.TRIES], half[N.SOFT])
        for provider, w in self.watches.items():
            self._decide(provider, w, now, alone=True)
        for key, path in due:
            self._judge(key, path, self._sick(key, now), now)
        self._warm(now)
        self._forget(now)

    def _sick(self, key: PathKey, now: float) -> bool:
        """Whether the path's failures are the provider's, or may turn out to be."""
        w = self.watches.get(key.provider)
        return w is not None and (bool(w.sick) or outage.undecided(w, key.source, now))

    def _peers(self, key: PathKey, sick: bool) -> Peers:
        tries = soft = 0
        for name in self._siblings.get(key.source, ()):
            other = self.paths.get(PathKey(name, key.provider, key.bucket))
            if other is not None:
                tries += other.half[0]
                soft += other.half[1]
        return Peers(tries, soft, sick)

    def _judge(self, key: PathKey, path: Path, sick: bool, now: float) -> None:
        c = path.counters
        usual = self.habits[key.provider].usual(now) if key.provider in self.habits else 0.0
        seen = self.placement.get((key.source, key.provider))
        path.score = score(
            c,
            cold=key.source in self._cold,
            usual_deferral=usual,
            placement=seen,
            faults=self.faults.get(key.source, ()),
            place=f"{key.provider} from {hour(now):02}:00 UTC",
        )
        before = path.standing
        after = standing.judge(
            before, c, path.score, self._peers(key, sick), self.policy.thresholds, now
        )
        if (
            key.source in self.listed
            and after.state not in (State.SUSPENDED, State.PAUSED)
            and not sick
        ):
            why = f"listed by {self.listed[key.source]}"
            after = standing.suspend(after, now, why, standing.BLOCK_SECONDS)
        if after.state is State.SUSPENDED and before.state is not State.SUSPENDED:
            counters.settle(c)
        path.standing = standing.weigh(after, path.score.value, now, frozen=sick)
        if path.standing != before or path.news:
            self.dirty.add(key)
        path.looked_at, path.news = now, False

    def _warm(self, now: float) -> None:
        for (source, provider), w in list(self.warm.items()):
            plan = self.plan(provider)
            paths = [
                (k, p) for k in self._of(source, provider) if (p := self.paths.get(k)) is not None
            ]
            looked = warmup.look(w, plan, _health([p.counters for _, p in paths], now), now)
            if source in self.listed and looked.reason != "blocklisted":
                looked = warmup.restart(looked, plan, now, "blocklisted")
            self.warm[(source, provider)] = looked
            for key, path in paths:
                standing_ = self._warmed(path.standing, looked, plan, now)
                if looked is not w or standing_ is not path.standing:
                    path.standing = standing_
                    self.dirty.add(key)

    def _warmed(self, s: Standing, w: warmup.Warming, plan: warmup.Plan, now: float) -> Standing:
        """What the warmup makes of a standing: done, or cold again."""
        done = w.cap >= plan.target
        back = State.WARM if done else State.WARMING
        if s.back is not back:
            s = msgspec.structs.replace(s, back=back)
        if done and s.state is State.WARMING:
            return standing.move(s, State.WARM, now, f"cap above {plan.target:g}")
        cold = w.step == 1 and warmup.idle_days(w, now) >= warmup.IDLE_COLD_DAYS
        if cold and s.state in (State.WARM, State.WARMING, State.SLOWED):
            return standing.move(s, State.COLD, now, w.reason)
        if not done and s.state is State.WARM:
            return standing.move(s, State.WARMING, now, w.reason)
        return s

    def _of(self, source: str, provider: str) -> list[PathKey]:
        return [PathKey(source, provider, b) for b in ("transactional", "marketing", "bulk")]

    def _forget(self, now: float) -> None:
        quiet = [
            key
            for key, path in self.paths.items()
            if now - path.counters.last > FORGET_AFTER
            and len(self._keys(key)) == 2
            and path.standing.state is State.WARM
            and path.counters.last > 0
        ]
        for key in quiet:
            del self.paths[key]
            self.dirty.add(key)

    # --- publishing ---------------------------------------------------------------------------

    def publish(self, now: float, paused: Mapping[str, float]) -> dict[str, PathState]:
        """The paths of a snapshot: sparse, numbers rounded so that nothing changes without a reason."""
        shown = [
            (key, path)
            for key, path in self.paths.items()
            if len(self._keys(key)) == 1
            or key.provider == OTHER
            or path.standing.state in OUT
            or (key.source not in self._cold and self._of_note(path))
        ]
        if len(shown) > MAX_PATHS:
            shown.sort(key=lambda item: -counters.faded(item[1].counters)[N.TRIES])
            del shown[MAX_PATHS:]
        out = {str(key): self._state(key, path, now, paused) for key, path in shown}
        # a cap counts all buckets of a source at a provider under one name from the first job on
        for source in sorted(self._cold if self.policy.warmup.enabled else ()):
            for provider in (OTHER, *sorted(self._named | self.policy.providers.keys())):
                for key in self._of(source, provider):
                    if str(key) not in out:
                        out[str(key)] = self._unseen(key, now, paused)
        return out

    @staticmethod
    def _of_note(path: Path) -> bool:
        """Whether an unknown provider is listed by its name; a warming source's share ``other``'s cap."""
        busy = counters.faded(path.counters)[N.TRIES] >= BUSY
        return busy or path.standing.state is not State.WARM

    def _unseen(self, key: PathKey, now: float, paused: Mapping[str, float]) -> PathState:
        """A bucket a warming source has not sent yet at a provider: under the source's cap there."""
        plan = self.plan(key.provider)
        w = self.warm.get((key.source, key.provider)) or warmup.begin(plan, now)
        done = w.cap >= plan.target
        begun = State.WARM if done else State.COLD if w.step == 1 else State.WARMING
        path = Path(Counters(), standing.new(begun, now))
        path.score = score(path.counters, cold=True)
        return self._state(key, path, now, paused, w)

    def _state(
        self,
        key: PathKey,
        path: Path,
        now: float,
        paused: Mapping[str, float],
        w: warmup.Warming | None = None,
    ) -> PathState:
        s = path.standing
        judged = path.score or score(path.counters, cold=key.source in self._cold)
        value = judged.value
        reasons = [r for r in (s.reason, *judged.reasons) if r]
        day: int | None = None
        hour: int | None = None
        w = w or self.warm.get((key.source, key.provider))
        if w is not None and key.source in self._cold and s.back is not State.WARM:
            day, hour = warmup.caps(w)
            if w.reason:
                reasons.insert(1 if s.reason else 0, f"warmup {w.reason}")
        if s.state in (State.PROBATION, State.RECOVERING):
            # below the holding mark nothing would be sent and nothing learnt
            value = max(value, self.policy.thresholds.hold_below + 0.05)
        if s.state is State.PROBATION:
            hour = min(hour or standing.PROBATION_HOUR, standing.PROBATION_HOUR)
        state, until = s.state, s.until if s.state is State.SUSPENDED else None
        if (watch := self.watches.get(key.provider)) is not None and watch.sick:
            reasons.insert(0, f"{key.provider} is in trouble: counts against no source")
        stop = paused.get(f"source:{key.source}")
        if stop is not None and stop > now:
            state, until = State.PAUSED, stop
            reasons.insert(0, "paused by an operator")
        return PathState(
            score=round(value, 2),
            weight=round(weights.published(s.effective, value), 3),
            state=str(state),
            cap_day=day,
            cap_hour=hour,
            until=until,
            confidence=round(judged.confidence, 1),
            reasons=tuple(reasons[:MAX_REASONS]),
        )


def _health(all_counters: list[Counters], now: float) -> warmup.Health:
    """The evidence of a source at a provider, all its buckets together, over the last hour."""
    hour = [0] * counters.WIDTH
    for c in all_counters:
        for i, value in enumerate(counters.recent(c, now, counters.HOUR)):
            hour[i] += value
    tries = hour[N.TRIES] + hour[N.HARD]
    if tries < 50:
        return warmup.Health(
            blocks=hour[N.BLOCKS], what=f"{hour[N.BLOCKS]} replies name our reputation"
        )
    bounce = complaint = 0.0
    if hour[N.HARD] > 0.02 * tries:
        bounce = statistics.exceeds(hour[N.HARD], tries, 0.02, (1.0, 99.0))
    if hour[N.COMPLAINTS] > 0.001 * hour[N.SENT]:
        complaint = statistics.exceeds(hour[N.COMPLAINTS], hour[N.SENT], 0.001, (0.5, 999.5))
    deferred = hour[N.DEFERRED] / max(1, hour[N.TRIES])
    if hour[N.BLOCKS] >= warmup.HALVE_BLOCKS:
        what = f"{hour[N.BLOCKS]} replies name our reputation"
    elif deferred > warmup.HOLD_DEFERRED:
        what = f"{deferred:.0%} deferred"
    elif bounce >= complaint:
        what = f"bounces {hour[N.HARD]} of {tries}"
    else:
        what = f"complaints {hour[N.COMPLAINTS]} of {hour[N.SENT]}"
    return warmup.Health(max(bounce, complaint), deferred, hour[N.BLOCKS], what)
