"""Thirty days for a mailbox that stays full and for an address that stays silent; nothing else counts."""

from __future__ import annotations

import pytest

from suppression.streaks import DAY, Ended, Try, stays_full, stays_silent

FULL = ("deferred", "mailbox_full", "recipient")


def tries(*rows: tuple[float, tuple[str, str | None, str | None]]) -> list[Try]:
    return [Try(-days * DAY, *how) for days, how in rows]


@pytest.mark.parametrize(
    ("history", "full"),
    [
        (tries(*((d, FULL) for d in (0, 2, 4, 6, 7.5))), True),
        (tries(*((d, FULL) for d in (0, 2, 4, 6, 6.9))), False),  # no week
        (tries(*((d, FULL) for d in (0, 3, 5, 8))), False),  # four times
        (
            tries(
                *((d, FULL) for d in (0, 2)),
                (3, ("sent", None, None)),
                *((d, FULL) for d in (4, 6, 8)),
            ),
            False,
        ),
        (
            tries(
                *((d, FULL) for d in (0, 2)),
                (3, ("deferred", "server_error", "remote")),
                *((d, FULL) for d in (4, 6, 8)),
            ),
            True,
        ),
        (tries((0, ("sent", None, None)), *((d, FULL) for d in (1, 2, 4, 6, 9))), False),
        ([], False),
    ],
)
def test_full(history: list[Try], full: bool) -> None:
    assert stays_full(history) is full


@pytest.mark.parametrize(
    ("history", "silent"),
    [
        ([(0, "expired", 3), (2, "expired", 1), (4, "expired", 2)], True),
        ([(0, "expired", 3), (0.1, "expired", 1), (0.2, "expired", 2)], False),  # one outage
        ([(0, "expired", 3), (2, "sent", 1), (4, "expired", 2), (6, "expired", 2)], False),
        ([(0, "expired", 3), (2, "expired", 0), (4, "expired", 2)], False),  # never tried
        ([(0, "expired", 3), (1, "refused", 0), (2, "expired", 1), (4, "expired", 2)], True),
        ([(0, "expired", 3), (4, "expired", 1)], False),
    ],
)
def test_silent(history: list[tuple[float, str, int]], silent: bool) -> None:
    assert stays_silent([Ended(-d * DAY, state, n) for d, state, n in history]) is silent
