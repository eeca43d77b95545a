"""Own-source watch and seed results: what counts, and what is no finding."""

from __future__ import annotations

import msgspec
import pytest

from reputation.policy.counters import Counters, count_attempt
from reputation.policy.placement import BadResults, checked, shares
from reputation.policy.score import score
from reputation.policy.watch import Answers, Certificate, findings, question
from reputation.signals import read_results

WELL = Answers(
    source="s1",
    ip="192.0.2.1",
    ehlo="mail.acme.test",
    ptr=("Mail.acme.test.",),
    forward={"mail.acme.test": ("192.0.2.1",)},
    zones={"zen.spamhaus.org": ()},
)


def changed(**fields: object) -> list[str]:
    return [f.check for f in findings(msgspec.structs.replace(WELL, **fields))]


def test_a_good_source_has_no_findings() -> None:
    assert findings(WELL) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"zones": {"zen.spamhaus.org": ("127.0.0.2", "127.0.0.10")}}, ["dnsbl"]),
        ({"zones": {"zen.spamhaus.org": ("127.255.255.254",)}}, []),  # refused query
        ({"zones": {"zen.spamhaus.org": None}}, []),  # no answer
        ({"ptr": ()}, ["ptr"]),
        ({"ptr": None}, []),
        ({"forward": {"mail.acme.test": ("192.0.2.9",)}}, ["fcrdns", "ehlo"]),
        ({"forward": {"mail.acme.test": None}}, []),
        ({"ehlo": "other.test"}, ["ehlo"]),
    ],
)
def test_findings(fields: dict[str, object], expected: list[str]) -> None:
    assert changed(**fields) == expected


def test_questions_are_reversed() -> None:
    assert question("192.0.2.99", "bl.test") == "99.2.0.192.bl.test"
    assert question("2001:db8::1", "bl.test").startswith("1.0.0.0.")
    assert question("2001:db8::1", "bl.test").endswith("8.b.d.0.1.0.0.2.bl.test")


def test_seed_results_by_json_and_csv_agree() -> None:
    text = (
        '[{"source":"s1","provider":"Gmail","folder":"Inbox"},'
        '{"source":"s1","provider":"gmail","folder":"spam"}]'
    )
    table = "source,provider,folder\ns1,gmail,inbox\ns1,gmail,Spam\n"
    assert shares(read_results(text)) == shares(read_results(table)) == {("s1", "gmail"): 0.5}
    assert read_results('{"results": ' + text + "}") == read_results(text)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"source": "s1"}],
        [{"source": "s|1", "provider": "g", "folder": "inbox"}],
        [{"source": "s1", "provider": "g", "folder": "lost"}],
        ["x"],
    ],
)
def test_bad_results_are_refused(rows: list[object]) -> None:
    with pytest.raises(BadResults):
        checked(rows)


NOW = 1_790_000_000.0
DAY = 86400.0


def shown(*names: str, begins: float = -30.0, ends: float = 60.0) -> Certificate:
    return Certificate("192.0.2.1:25", names, NOW + begins * DAY, NOW + ends * DAY)


@pytest.mark.parametrize(
    ("certificate", "says", "fault"),
    [
        (shown("mail.acme.test"), None, False),
        (shown("*.acme.test"), None, False),
        (shown("other.test", "MAIL.acme.test."), None, False),
        (shown("mail.acme.test", ends=13), "ends in 13 days", False),
        (shown("mail.acme.test", ends=-2), "expired 2 days ago", True),
        (shown("mail.acme.test", begins=1), "not valid yet", True),
        (shown("acme.test"), "made out to acme.test, not to mail.acme.test", True),
        (shown("*.mail.acme.test"), "not to mail.acme.test", True),
        (shown("*.test"), "not to mail.acme.test", True),
        (shown(), "made out to nobody", True),
    ],
)
def test_certificates(certificate: Certificate, says: str | None, fault: bool) -> None:
    found = findings(msgspec.structs.replace(WELL, certificates=(certificate,)), NOW, 14.0)
    assert len(found) == (says is not None)
    for finding in found:
        assert finding.check == "certificate"
        assert says is not None
        assert says in finding.detail
        assert finding.fault is fault


def test_faults_weigh_on_the_score_and_are_named() -> None:
    c = Counters()
    for n in range(500):
        count_attempt(c, NOW + n, 1, "sent", None, None)
    well = score(c, cold=False)
    poor = score(c, cold=False, faults=("ptr", "certificate"))
    assert poor.evidence == pytest.approx(well.evidence * 0.9)
    assert any("ptr, certificate" in reason for reason in poor.reasons)
    assert poor.components["own address"] == 0.9
