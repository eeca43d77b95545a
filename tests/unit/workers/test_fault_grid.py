"""The 112 cells of tests/data/fault_grid.yaml, obeyed by the decision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mailweir.contracts.lifecycle import State
from mailweir.contracts.policy import Retry, Source
from mailweir.contracts.route import Orders
from mailweir.mail.classify import classify
from tests.unit.workers.test_outcome import NOW, job
from workers.delivery.types import Result
from workers.policy.outcome import decide

GRID = yaml.safe_load((Path(__file__).parents[2] / "data/fault_grid.yaml").read_text())
CELLS = [
    (fault, row, stage, state)
    for fault, row in GRID["faults"].items()
    for stage, state in zip(GRID["stages"], row["cells"], strict=True)
]


def test_the_grid_is_whole() -> None:
    assert len(CELLS) == 112
    assert all(row["why"] for row in GRID["faults"].values())


@pytest.mark.parametrize(
    ("row", "stage", "state"),
    [(row, stage, state) for _, row, stage, state in CELLS],
    ids=[f"{fault}-{stage}" for fault, _, stage, _ in CELLS],
)
def test_cell(row: dict[str, Any], stage: str, state: str) -> None:
    reply = row.get("reply", "")
    code = int(reply[:3]) if reply else None
    result = Result(
        1, stage, code, reply, "mx.there.example", 0.1, stage == "dot", row.get("error")
    )
    seen = classify(reply, stage=stage) if reply else None
    verdict = decide(
        job(), Orders(), result, seen, Retry(), source=Source("mx1"), now=NOW, chance=0.5
    )
    assert verdict.state is State(state)
    if verdict.suppress is not None:
        assert verdict.state is State.BOUNCED
    if state == "uncertain":
        assert verdict.layer is None
        assert verdict.stay_with == "mx1"
