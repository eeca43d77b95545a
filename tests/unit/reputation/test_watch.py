"""Own-source watch and seed results: what counts, and what is no finding."""

from __future__ import annotations

import msgspec
import pytest

from reputation.policy.placement import BadResults, checked, shares
from reputation.policy.watch import Answers, findings, question
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
