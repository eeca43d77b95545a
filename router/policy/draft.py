"""The working copy of a batch: the state being changed, and what is looked up once per batch."""

from __future__ import annotations

from typing import NamedTuple

from mailweir.contracts.policy import Share
from router.policy import shares
from router.policy.context import Context, RouterState
from router.policy.eligibility import Look
from router.policy.told import Told
from router.policy.wanted import weight_at


class Drawn(NamedTuple):
    """A drawn arm; ``key`` and ``turn`` are written back only if the job is routed."""

    arm: int  # its place among the shares
    key: str
    turn: shares.Turn | None


class Draft:
    """Mutable inside one batch only. :meth:`close` gives the state for the next."""

    def __init__(self, context: Context, state: RouterState, told: Told | None = None) -> None:
        """``told``: what a record says of this moment, in a replay."""
        self.context = context
        self.told = told
        self.turns = dict(state.turns)
        self.credits = dict(state.credits)
        self.ramps = dict(state.ramps)
        same = state.fast_version == context.fast.version
        self.used: dict[str, int] = dict(state.used) if same else {}
        self.paused = {
            subject: until
            for subject, until in {**context.snapshot.paused, **context.paused}.items()
            if until > context.now
        }
        self.look = Look(
            context.policy.policy.thresholds,
            context.fast.paths,
            self.used,
            self.ramps,
            self.paused,
            context.policy.policy,
        )
        self._weights: dict[str, tuple[tuple[int, ...], str]] = {}
        self._down: frozenset[str] | None = None

    def close(self) -> RouterState:
        """The state after the batch."""
        return RouterState(
            self.context.fast.version, self.turns, self.credits, self.used, self.ramps
        )

    def draw(self, key: str, arms: tuple[Share, ...]) -> Drawn:
        """Which arm's turn it is; nothing is charged yet."""
        if self.told is not None:
            self.told.arms = len(arms)
            return Drawn(min(self.told.arm, len(arms) - 1), "", None)
        if len(arms) == 1:
            return Drawn(0, "", None)
        known = self._weights.get(key)
        if known is None:
            now = self.context.now
            weights = tuple(weight_at(arm, now) for arm in arms)
            names = "/".join(
                f"{a.pool}:{a.source or ''}={w}" for a, w in zip(arms, weights, strict=True)
            )
            known = self._weights[key] = (weights, f"{key}|{names}")
        weights, turn_key = known
        turn = self.turns.get(turn_key)
        if turn is None:
            if sum(weights) == 0:
                return Drawn(0, "", None)  # every arm is a fallback of the first
            turn = shares.begin(weights)
        index, after = shares.draw(turn, weights)
        return Drawn(index, turn_key, after)

    def charge(self, drawn: Drawn) -> None:
        """The drawn arm has had its turn."""
        if drawn.turn is not None:
            self.turns[drawn.key] = drawn.turn

    def provider_down(self, provider: str) -> bool:
        """S35: all our own sources that lately spoke to a provider (two at least) have their breaker
        open there. Then it is the provider, and own sources do not shift among themselves."""
        if self._down is None:
            self._down = self._providers_down()
        return provider in self._down

    def _providers_down(self) -> frozenset[str]:
        fast = self.context.fast.paths
        troubled = {key.partition("|")[2] for key, path in fast.items() if path.breaker != "closed"}
        if not troubled:
            return frozenset()
        sources = self.context.policy.sources
        breakers: dict[str, list[str]] = {}
        for key, path in fast.items():
            name, _, provider = key.partition("|")
            if provider in troubled and name in sources and sources[name].own:
                breakers.setdefault(provider, []).append(path.breaker)
        return frozenset(
            provider
            for provider, states in breakers.items()
            if len(states) >= 2 and "closed" not in states
        )
