"""S55: what a destination does at an hour of the day is held against nobody, and the reasons say so."""

from __future__ import annotations

import pytest

from mailweir.contracts.policy import Member, Policy, Pool, Source
from reputation.policy.book import Book, PathKey, Tried
from reputation.policy.history import ENOUGH, Habits

DAY = 86400.0
MIDNIGHT = 1_790_000_000.0 // DAY * DAY
EVENING = 20 * 3600.0
POLICY = Policy(
    sources={"ip1": Source("ip1", ip="192.0.2.1")}, pools={"p": Pool("p", (Member("ip1"),))}
)


def an_hour(book: Book, begins: float, provider: str, *, every: int, count: int = 300) -> None:
    """``count`` first attempts in an hour, each ``every``th put off for a while (the remote's wish)."""
    for n in range(count):
        put_off = n % every == 0
        book.tried(
            Tried(
                begins + n * 3500.0 / count,
                PathKey("ip1", provider, "bulk"),
                1,
                "deferred" if put_off else "sent",
                "rate_limited" if put_off else None,
                "remote" if put_off else None,
                0.2,
            )
        )


def reasons(book: Book, provider: str, now: float) -> tuple[str, ...]:
    book.look(now)
    return book.publish(now, {})[f"{provider_key(provider)}"].reasons


def provider_key(provider: str) -> str:
    return f"ip1|{provider}|bulk"


def learned(provider: str, begins: float, days: int = 4, every: int = 3) -> Book:
    book = Book(POLICY, ("gmail", "yahoo", "news.example"))
    for day in range(days):
        an_hour(book, begins + day * DAY, provider, every=every)
    return book


@pytest.mark.parametrize("provider", ["gmail", "news.example"])
def test_the_usual_hour_of_a_destination_excuses_and_is_named(provider: str) -> None:
    begins = MIDNIGHT + EVENING
    book = learned(provider, begins)
    an_hour(book, begins + 4 * DAY, provider, every=3)
    now = begins + 4 * DAY + 3550.0
    said = reasons(book, provider, now)
    (habit,) = [r for r in said if "usual" in r]
    assert habit.startswith("deferrals 31")
    assert f"not held against it, usual for {provider} from 20:00 UTC: 33%" in habit
    path = book.paths[PathKey("ip1", provider, "bulk")]
    assert path.score is not None
    assert path.score.components["deferrals"] > 0.98


def test_the_same_at_another_hour_is_held_against_the_path() -> None:
    begins = MIDNIGHT + EVENING
    book = learned("gmail", begins)
    an_hour(book, begins + 4 * DAY + 6 * 3600.0, "gmail", every=3)
    said = reasons(book, "gmail", begins + 4 * DAY + 6 * 3600.0 + 3550.0)
    assert [r for r in said if r.startswith("deferrals")]
    assert not [r for r in said if "usual" in r]


def test_worse_than_usual_costs_and_the_reason_names_both() -> None:
    begins = MIDNIGHT + EVENING
    book = learned("gmail", begins, every=10)
    an_hour(book, begins + 4 * DAY, "gmail", every=2, count=2000)
    said = reasons(book, "gmail", begins + 4 * DAY + 3550.0)
    (habit,) = [r for r in said if "usual" in r]
    assert "good below" in habit
    assert "usual for gmail from 20:00 UTC" in habit


def test_one_destinations_habit_says_nothing_of_another() -> None:
    begins = MIDNIGHT + EVENING
    book = learned("gmail", begins)
    an_hour(book, begins + 4 * DAY, "yahoo", every=3)
    said = reasons(book, "yahoo", begins + 4 * DAY + 3550.0)
    assert [r for r in said if r.startswith("deferrals")]
    assert not [r for r in said if "usual" in r]


def test_a_habit_needs_enough_and_another_day() -> None:
    habits = Habits()
    for n in range(int(ENOUGH) - 1):
        habits.note(MIDNIGHT + n, True, 0.1)
    assert habits.usual(MIDNIGHT) == 0.0  # today excuses nothing
    habits.note(MIDNIGHT + DAY, True, 0.1)
    assert habits.usual(MIDNIGHT + DAY) == 0.0  # one short of enough
    habits.note(MIDNIGHT + 2 * DAY, False, 0.1)
    assert habits.usual(MIDNIGHT + 2 * DAY) == 0.0
