"""Ids: ordered by time, distinct, the same after a round trip through text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailweir.contracts import ids
from mailweir.contracts.ids import (
    EPOCH_MS,
    RANDOM_BITS,
    TEXT_LENGTH,
    InvalidId,
    format_id,
    new_id,
    new_ids,
    parse_id,
)

IDS = st.integers(min_value=0, max_value=(1 << 63) - 1)


@given(IDS)
def test_text_and_back(value: int) -> None:
    text = format_id(value)
    assert len(text) == TEXT_LENGTH
    assert parse_id(text) == value
    assert parse_id(f" {text.upper()}\n") == value


@given(IDS, IDS)
def test_text_sorts_like_ids(a: int, b: int) -> None:
    assert (format_id(a) < format_id(b)) == (a < b)


@given(
    st.integers(min_value=EPOCH_MS, max_value=EPOCH_MS + (1 << 40)),
    st.integers(min_value=1, max_value=1 << 20),
    st.integers(min_value=0),
    st.integers(min_value=0),
)
def test_later_ids_are_larger(ms: int, later: int, a: int, b: int) -> None:
    assert new_id(ms / 1000, a) < new_id((ms + later + 1) / 1000, b)
    assert new_id(ms / 1000, a) < 1 << 63


@given(st.integers(min_value=1, max_value=500))
def test_ids_made_together_are_distinct_and_ascending(count: int) -> None:
    made = new_ids(count)
    assert len(set(made)) == count
    assert made == sorted(made)


def test_ids_of_one_process_are_distinct() -> None:
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: [new_id() for _ in range(50_000)], range(4)))
    assert all(part == sorted(part) for part in parts)
    assert len({i for part in parts for i in part}) == 200_000


def test_processes_with_other_nodes_never_make_the_same_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_maker", ids._Maker())
    monkeypatch.setattr("time.time_ns", lambda: 1_900_000_000_000_000_000)
    one = []
    for node in (1, 2, 4095):
        ids._maker.last = 0
        ids.use_node(node)
        one += new_ids(3000)
    assert len(set(one)) == 9000


def test_the_clock_may_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_maker", ids._Maker())
    monkeypatch.setattr("time.time_ns", lambda: 1_900_000_000_000_000_000)
    first = new_id()
    monkeypatch.setattr("time.time_ns", lambda: 1_800_000_000_000_000_000)
    assert new_id() > first


def test_before_the_epoch_there_is_still_an_id() -> None:
    assert new_id(0.0, 5) == 5
    assert new_id(0.0, 1 << RANDOM_BITS) == 0


@pytest.mark.parametrize(
    "text", ["", "0" * 12, "0" * 14, "il0o000000000", "zzzzzzzzzzzzz", "ü" * 13]
)
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(InvalidId):
        parse_id(text)
