"""Settings that make no sense together are refused, by name and with what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailweir.plumbing.settings import SettingsError, load


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RATE", "ORIGIN"):
        monkeypatch.delenv(f"MAILWEIR_CLOCK__{name}", raising=False)


def test_a_faster_clock_needs_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILWEIR_CLOCK__RATE", "10")
    with pytest.raises(SettingsError) as refused:
        load(tmp_path)
    assert "clock" in str(refused.value)
    assert "needs clock.origin" in str(refused.value)
    monkeypatch.setenv("MAILWEIR_CLOCK__ORIGIN", "1790000000")
    assert load(tmp_path).clock.rate == 10


def test_real_time_needs_none(tmp_path: Path) -> None:
    assert (load(tmp_path).clock.rate, load(tmp_path).clock.origin) == (1, 0)


def test_mail_routed_anew_stands_behind_less_than_a_failover_may_take(tmp_path: Path) -> None:
    """S35, 5 s: behind it are the window of its queue and, in every slot, a chunk that waits for tokens."""
    settings = load(tmp_path)
    assert settings.router.window_seconds + settings.worker.chunk_token_wait < 5.0
