"""The housekeeper: sweeps also while there is always something to prune."""

from __future__ import annotations

from pathlib import Path

import pytest

from console import housekeeping
from console.housekeeping import Housekeeper
from mailweir.plumbing.clock import REAL
from mailweir.plumbing.database import Database
from mailweir.plumbing.settings import SpoolSettings
from mailweir.spool.store import Spool


class Busy(Spool):
    """Always has more to prune."""

    pruned = swept = 0

    def prune(self, now: float, keep_content: float, keep_jobs: float, limit: int) -> int:
        self.pruned += 1
        return limit

    def sweep_bodies(self) -> int:
        self.swept += 1
        return 0


class Idle(Busy):
    """Has nothing to prune."""

    def prune(self, now: float, keep_content: float, keep_jobs: float, limit: int) -> int:
        self.pruned += 1
        return 0


@pytest.mark.parametrize(
    ("every", "times"), [pytest.param(600.0, 1, id="seldom"), pytest.param(1e-9, 20, id="often")]
)
def test_it_sweeps_while_it_prunes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, times: int
) -> None:
    monkeypatch.setattr(housekeeping, "LOOK_EVERY", 0.001)
    spool = Busy(Database(f"sqlite:///{tmp_path / 'spool.db'}"))
    settings = SpoolSettings.model_validate({"prune_every": 1e-9, "sweep_every": every})
    Housekeeper(spool, REAL, settings).run(lambda: spool.pruned >= 20)
    assert spool.swept == times


def test_it_sweeps_more_often_than_it_prunes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "LOOK_EVERY", 0.001)
    spool = Idle(Database(f"sqlite:///{tmp_path / 'spool.db'}"))
    settings = SpoolSettings.model_validate({"prune_every": 600.0, "sweep_every": 1e-9})
    Housekeeper(spool, REAL, settings).run(lambda: spool.swept >= 5)
    assert spool.pruned == 0
