"""MTA-STS records and policy files: RFC 8461's examples, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.delivery.sts_policy import MAX_AGE, BadPolicy, StsPolicy, parse, policy_id

# RFC 8461 3.2
EXAMPLE = (
    "version: STSv1\nmode: enforce\nmx: mail.example.com\nmx: *.example.net\n"
    "mx: backupmx.example.com\nmax_age: 604800\n"
)


@pytest.mark.parametrize(
    ("records", "found"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),  # RFC 8461 3.1
        (["v=STSv1;id=1"], "1"),
        (["v=STSv1; id=1; other=x;"], "1"),
        (["v=spf1 -all", "v=STSv1; id=1;"], "1"),
        (["v=STSv1; id=1;", "v=STSv1; id=2;"], None),
        (["v=STSv1;"], None),
        (["v=STSv1; id=;"], None),
        (["v=STSv1; id=a b;"], None),
        (["v=STSv1; id=" + "a" * 33], None),
        (["v=STSv2; id=1;"], None),
        (["id=1; v=STSv1;"], None),
        ([], None),
    ],
)
def test_record(records: list[str], found: str | None) -> None:
    assert policy_id(records) == found


def test_example() -> None:
    policy = parse(EXAMPLE)
    assert policy == StsPolicy(
        "enforce", ("mail.example.com", "*.example.net", "backupmx.example.com"), 604_800
    )
    assert parse(EXAMPLE.replace("\n", "\r\n")) == policy


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("mail.example.com", True),
        ("MAIL.example.com.", True),
        ("a.example.net", True),
        ("a.b.example.net", False),  # RFC 8461 4.1: one label only
        ("example.net", False),
        ("xexample.net", False),
        ("mail.example.com.evil.test", False),
        ("", False),
    ],
)
def test_hosts(host: str, allowed: bool) -> None:
    assert parse(EXAMPLE).allows(host) is allowed


@pytest.mark.parametrize(
    "text",
    [
        "",
        EXAMPLE.replace("STSv1", "STSv2"),
        EXAMPLE.replace("version: STSv1\n", ""),
        EXAMPLE.replace("enforce", "ENFORCE"),
        EXAMPLE.replace("max_age: 604800\n", ""),
        EXAMPLE.replace("604800", "-1"),
        EXAMPLE.replace("604800", "1e9"),
        EXAMPLE.replace("604800", "²"),
        "version: STSv1\nmode: enforce\nmax_age: 1\n",
        EXAMPLE.replace("mail.example.com", "mail example"),
        EXAMPLE.replace("*.example.net", "*.*.net"),
        EXAMPLE.replace("*.example.net", "*"),
        EXAMPLE + "<html>\n",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(BadPolicy):
        parse(text)


def test_bounds_and_forward_compatibility() -> None:
    assert parse(EXAMPLE.replace("604800", "9999999999")).max_age == MAX_AGE
    assert parse(EXAMPLE + "mode: none\nnew_key: value\n").mode == "enforce"
    assert parse("version: STSv1\nmode: none\nmax_age: 60\n").mx == ()


@given(st.text())
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    try:
        policy = parse(text)
    except BadPolicy:
        return
    assert policy.mode in ("enforce", "testing", "none")


@given(st.text(alphabet="abc.*-", max_size=30))
def test_no_pattern_of_another_domain_allows_a_host(host: str) -> None:
    allowed = StsPolicy("enforce", ("*.example.net",), 1.0).allows(host)
    assert allowed == (host.rstrip(".").partition(".")[2] == "example.net")
