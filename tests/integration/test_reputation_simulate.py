"""The scenarios of examples/reputation, run as users run them, and what docs/reputation.md shows of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
import pytest

from reputation import simulate_detection
from reputation.simulate import BadScenario, Result, daily, load, run
from reputation.simulate_plot import draw

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "reputation"
PAGE = (ROOT / "docs" / "reputation.md").read_text()


@cache
def simulated(name: str) -> Result:
    return run(load((EXAMPLES / name).read_text()))


def test_six_week_warmup_reaches_20000_in_week_5() -> None:
    result = simulated("warmup.yaml")
    new = {row["day"]: row for row in daily(result) if row["source"] == "new"}
    assert new[1]["volume"] == 50
    reached = next(day for day, row in new.items() if row["volume"] >= 20_000)
    assert 28 < reached <= 35
    assert all(new[d + 1]["volume"] <= max(new[d]["volume"] * 1.25, 60) for d in range(1, 32))
    assert result.cap_exceeded == 0
    assert result.waiting < 100  # the overflow went to the warm source


def test_bad_list_halves_the_cap_and_it_recovers() -> None:
    result = simulated("bad-list.yaml")
    new = {row["day"]: row for row in daily(result) if row["source"] == "new"}
    before = new[24]["cap"]
    assert new[26]["cap"] <= before * 0.65
    assert new[32]["cap"] > before * 1.2
    assert result.cap_exceeded == 0
    slowed = [day for day, path, state, _ in result.moves if state == "slowed" and "new" in path]
    assert len(slowed) == 1
    assert 24 <= slowed[0] <= 25


def test_flagged_source_follows_the_row() -> None:
    result = simulated("flagged-source.yaml")
    path = [m for m in result.moves if m[1].startswith("s1|outlook")]
    assert 0.5 < path[0][0] < 0.5 + 45 / 1440
    assert path[0][2] == "suspended"
    probation = [m[0] for m in path if m[2] == "probation"][-1]
    recovering = [m[0] for m in path if m[2] == "recovering"][-1]
    well = [m[0] for m in path if m[2] == "warm"][-1]
    assert (recovering - probation) * 24 == pytest.approx(4.0, abs=0.1)
    assert (well - probation) * 24 == pytest.approx(24.0, abs=0.2)
    assert not [m for m in result.moves if not m[1].startswith("s1|outlook")]
    assert result.waiting < 100


def test_an_outage_of_the_provider_moves_nobody() -> None:
    result = simulated("provider-outage.yaml")
    assert result.moves == ()
    rows = [r for r in result.rows if r.provider == "outlook"]
    before = min(r.score for r in rows if 0.2 < r.day <= 0.25)
    assert all(r.score >= before - 0.01 for r in rows if r.day > 0.25)


def test_same_seed_same_result() -> None:
    scenario = msgspec.structs.replace(
        load((EXAMPLES / "flagged-source.yaml").read_text()), days=0.1
    )
    assert run(scenario) == run(scenario)


@pytest.mark.parametrize("name", ["warmup", "bad-list", "flagged-source", "provider-outage"])
def test_the_pages_plots_are_what_the_command_draws_today(name: str, tmp_path: Path) -> None:
    assert f"images/{name}.svg" in PAGE
    draw(simulated(f"{name}.yaml"), tmp_path / "plot.svg")
    told = f"run: mailweir reputation simulate examples/reputation/{name}.yaml --plot docs/images/{name}.svg"
    # not compared by ==, whose difference of two drawings takes minutes to print
    same = (tmp_path / "plot.svg").read_bytes() == (ROOT / f"docs/images/{name}.svg").read_bytes()
    assert same, told


def test_the_pages_figures_of_the_warmup_are_the_commands() -> None:
    result = simulated("warmup.yaml")
    assert (result.waiting, result.cap_exceeded) == (0, 0)
    assert f"{result.sent:,} jobs sent, no cap exceeded, none waiting" in PAGE


def test_the_pages_figures_of_the_detectors_are_the_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    simulate_detection.main()
    printed = capsys.readouterr().out.strip()
    assert len(printed.splitlines()) > 40
    assert printed in PAGE, "stale; run: python -m reputation.simulate_detection"


@pytest.mark.parametrize(
    "text",
    ["days: x", "name: a", "[1]", "name: a\ndays: 1\nsources: {}\ndemand: {}\ntypo: 1", ": :"],
)
def test_bad_scenarios_are_named(text: str) -> None:
    with pytest.raises(BadScenario):
        load(text)
