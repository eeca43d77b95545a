"""What the router makes of a path's fields."""

from __future__ import annotations

from router.fast import path


def fields(**given: object) -> list[bytes | None]:
    names = ("phase", "until", "back", "rate", "hold", "day", "day_n", "hour", "hour_n")
    return [str(given[n]).encode() if n in given else None for n in names]


def test_an_unseen_path_is_closed_and_unused() -> None:
    seen = path(fields(), 1000.0)
    assert (seen.breaker, seen.rate, seen.used_day) == ("closed", None, 0)


def test_open_turns_half_open_at_its_time() -> None:
    assert path(fields(phase="open", until=1060), 1000.0).breaker == "open"
    assert path(fields(phase="open", until=1060), 1060.0).breaker == "half_open"


def test_a_path_somebody_probes_is_open_for_everybody_else() -> None:
    seen = path(fields(phase="open", until=1060), 1060.0, probed=True)
    assert (seen.breaker, seen.open_until) == ("open", 1070.0)
    assert path(fields(), 1060.0, probed=True).breaker == "closed", "an old lease runs out"


def test_a_path_on_its_way_back_trickles() -> None:
    assert path(fields(phase="back", back=1000), 1010.0).rate == 0.1


def test_a_path_on_its_way_back_takes_what_it_has_tokens_for() -> None:
    ramp = fields(phase="back", back=1000)
    assert path(ramp, 1010.0, place=1018.0).available_at == 1018
    assert path(ramp, 1500.0, place=1508.0).available_at == 1508
    assert path(ramp, 1500.0, place=1400.0).available_at == 0, "nobody waits"
    assert path(ramp, 2100.0, place=2108.0).available_at == 0, "the ramp is over"
    assert path(fields(), 1500.0, place=1508.0).available_at == 0, "a limit is no failure"


def test_counters_of_another_day_do_not_count() -> None:
    day = 20_000 * 86_400.0
    assert path(fields(day=20_000, day_n=7), day + 5).used_day == 7
    assert path(fields(day=19_999, day_n=7), day + 5).used_day == 0


def test_the_remotes_own_wish_is_an_available_time() -> None:
    assert path(fields(hold=1300), 1000.0).available_at == 1300
    assert path(fields(hold=1300), 1400.0).available_at == 0
