"""The demo's figures come from evidence, so they must show a loss and a duplicate when there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from console.demo import RATE, settings_toml
from console.demo_report import Summary, readable, summarise
from mailweir.plumbing.settings import load


def record(ref: str, recipient: str, provider: str, at: float) -> dict[str, Any]:
    return {"ref": ref, "recipient": recipient, "provider": provider, "at": at}


def make(answered: int, witness: list[dict[str, Any]], fault_at: float | None = 100.0) -> Summary:
    jobs = [
        ("a", "bulk", "sent", None),
        ("b", "bulk", "sent", None),
        ("c", "marketing", "refused", "suppressed: invalid_recipient"),
        ("d", "transactional", "deferred", "mailbox_full"),
    ]
    return summarise(
        answered=answered,
        jobs=jobs,
        witness=witness,
        began=90.0,
        fault_at=fault_at,
        failing="gmail",
        failing_domains=("gmail.com",),
        clock_rate=1.0,
    )


def test_a_clean_run_has_no_loss_and_a_shift() -> None:
    summary = make(
        4,
        [record("a", "x@gmail.com", "gmail", 95.0), record("b", "y@gmail.com", "relay", 103.5)],
    )
    assert (summary.lost, summary.duplicates) == (0, 0)
    assert summary.shift_seconds == 3.5
    assert summary.sent_by_backup == 1
    assert (summary.refused, summary.suppressed, summary.deferred) == (1, 1, 1)
    assert "3.5 s after the fault" in readable(summary)


def test_a_sent_job_without_a_record_is_lost() -> None:
    assert make(4, [record("a", "x@gmail.com", "gmail", 95.0)]).lost == 1


def test_an_accepted_job_without_a_row_is_lost() -> None:
    records = [record("a", "x@gmail.com", "gmail", 95.0), record("b", "y@b.net", "generic", 96.0)]
    assert make(6, records).lost == 2


def test_a_second_record_is_a_duplicate() -> None:
    records = [record("a", "x@gmail.com", "gmail", 95.0), record("b", "y@b.net", "generic", 96.0)]
    assert make(4, [*records, records[0]]).duplicates == 1
    assert make(4, records, fault_at=None).shift_seconds is None


def test_commands_beside_the_demo_find_its_settings(tmp_path: Path) -> None:
    hosts = {"*": ["127.0.0.1:25"], "gmail.com": ["127.0.0.1:2525", "127.0.0.1:2526"]}
    policy = tmp_path / 'a "policy".yaml'
    (tmp_path / "mailweir.toml").write_text(settings_toml(policy, 1.5, hosts))
    settings = load(tmp_path)
    assert (settings.clock.origin, settings.clock.rate) == (1.5, RATE)
    assert settings.dns.mx_map == hosts
    assert settings.policy == policy
    assert settings.smtp.allow_private
