"""S35: the same symptom on all own sources is the provider's; one source's symptom is its own."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mailweir.contracts.policy import Member, Policy, Pool, Source
from reputation.policy import outage
from reputation.policy.book import Book, PathKey, Tried
from reputation.policy.states import State

T0 = 1_800_000_000.0
TX = PathKey("tx-1", "outlook", "transactional")
NEWS = [PathKey(n, "outlook", b) for n in ("news-1", "news-2") for b in ("marketing", "bulk")]
PATHS = [TX, *NEWS]
POLICY = Policy(
    sources={name: Source(name) for name in ("tx-1", "news-1", "news-2")},
    pools={
        "transactional": Pool("transactional", (Member("tx-1"),)),
        "news": Pool("news", (Member("news-1"), Member("news-2"))),
    },
)
REMOTE = ("deferred", "server_error", "remote")
RATE = ("deferred", "rate_limited", "source")
CONTENT = ("bounced", "spam_content", "content")
SENT = ("sent", None, None)


class World:
    """Attempts in their order, a look every ten seconds; ``answer`` says what the provider replies."""

    def __init__(self, policy: Policy = POLICY, paths: list[PathKey] = PATHS) -> None:
        self.book = Book(policy, ("outlook", "gmail"))
        self.paths = paths
        self.now = T0
        self.chance = random.Random(4)
        self.seen: set[tuple[str, State]] = set()

    def run(
        self,
        seconds: float,
        answer: Callable[[PathKey, int], tuple[str, str | None, str | None] | None],
        per_minute: int = 6,
    ) -> None:
        end, n = self.now + seconds, dict.fromkeys(self.paths, 0)
        while self.now < end:
            due = [
                (self.now + self.chance.random() * 10, key)
                for key in self.paths
                if self.chance.random() < per_minute / 6
            ]
            for at, key in sorted(due):
                how = answer(key, n[key])
                n[key] += 1
                if how is not None:
                    self.book.tried(Tried(at, key, 1, *how, 0.1))
            self.now += 10
            self.book.look(self.now)
            self.seen |= {(str(k), p.standing.state) for k, p in self.book.paths.items()}

    def scores(self) -> dict[PathKey, float]:
        return {k: p.score.value for k, p in self.book.paths.items() if p.score}

    def states(self) -> set[State]:
        return {state for _, state in self.seen}


def well(key: PathKey, n: int) -> tuple[str, str | None, str | None]:
    return SENT


def down(key: PathKey, n: int) -> tuple[str, str | None, str | None] | None:
    """Breakers open after five failures; after that a few attempts a path still come through."""
    return REMOTE if n < 5 or (key is not TX and n % 2 == 0) else None


def test_outage_then_normal_costs_nothing() -> None:
    """What the demo does: 150 s of outage, the transactional source tries five times."""
    world = World()
    world.run(1800, well)
    before = world.scores()
    world.run(150, down)
    assert world.book.watches["outlook"].sick == [outage.REMOTE]
    shown = world.book.publish(world.now, {})[str(NEWS[0])]
    assert "trouble" in shown.reasons[0]
    world.run(3 * 3600, well)
    assert world.states() == {State.WARM}
    assert all(value >= before[key] - 0.01 for key, value in world.scores().items())
    assert world.book.watches["outlook"].sick == []
    # no habit was learnt from it either
    habits = world.book.habits["outlook"]
    assert sum(habits.today_deferred) <= 12  # what was counted before it was recognised


@pytest.mark.parametrize("share", [0.12, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("how", [REMOTE, RATE])
@pytest.mark.parametrize("per_minute", [2, 6])
def test_partial_outages_of_two_hours(
    share: float, how: tuple[str, str, str], per_minute: int
) -> None:
    world = World()
    world.run(1800, well, per_minute)
    before = world.scores()
    world.run(7200, lambda key, n: how if world.chance.random() < share else SENT, per_minute)
    world.run(2 * 3600, well, per_minute)
    assert State.SUSPENDED not in world.states()
    assert all(value >= before[key] - 0.05 for key, value in world.scores().items())


@pytest.mark.parametrize("how", [REMOTE, RATE])
def test_one_source_alone_is_caught(how: tuple[str, str, str]) -> None:
    world = World()
    world.run(1800, well)
    world.run(1800, lambda key, n: how if key.source == "news-1" and n % 3 == 0 else SENT)
    out = {name for name, state in world.seen if state is State.SUSPENDED}
    assert {name.split("|")[0] for name in out} == {"news-1"}


def test_a_source_flagged_after_an_outage_is_caught() -> None:
    world = World()
    world.run(1800, well)
    world.run(150, down)
    world.run(1200, well)
    world.run(1800, lambda key, n: RATE if key.source == "news-1" and n % 3 == 0 else SENT)
    out = {name.split("|")[0] for name, state in world.seen if state is State.SUSPENDED}
    assert out == {"news-1"}


def test_the_only_source_is_not_blamed_for_the_providers_replies() -> None:
    policy = Policy(
        sources={"only": Source("only")}, pools={"main": Pool("main", (Member("only"),))}
    )
    key = PathKey("only", "outlook", "marketing")
    world = World(policy, [key])
    world.run(1800, well)
    world.run(600, lambda key, n: REMOTE)
    world.run(3600, well)
    assert world.states() == {State.WARM}
    world.run(1800, lambda key, n: RATE if n % 4 == 0 else SENT)
    assert State.SUSPENDED in world.states()


def test_our_content_is_ours_on_every_source() -> None:
    world = World()
    world.run(1800, well)
    before = world.scores()
    world.run(3600, lambda key, n: CONTENT if n % 5 == 0 else SENT)
    assert world.book.watches.get("outlook", outage.Watch()).sick == []
    assert all(world.scores()[key] < before[key] - 0.1 for key in PATHS)


def test_an_outage_elsewhere_excuses_nobody() -> None:
    paths = [*PATHS, *(key._replace(provider="gmail") for key in PATHS)]
    world = World(POLICY, paths)
    world.run(1800, well)

    def answer(key: PathKey, n: int) -> tuple[str, str | None, str | None]:
        if key.provider == "outlook":
            return REMOTE
        return RATE if key.source == "news-2" and n % 4 == 0 else SENT

    world.run(1800, answer)
    out = {name for name, state in world.seen if state is State.SUSPENDED}
    assert {tuple(name.split("|")[:2]) for name in out} == {("news-2", "gmail")}
