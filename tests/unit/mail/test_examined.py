"""Mails and webhook payloads an examiner wrote without looking at the code: what they found is in
docs/reputation.md, what they hold must stay right."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailweir.contracts.events import BounceClass, EventType
from mailweir.mail.bounce_parse import parse_report
from mailweir.spool.feedback import printable
from reputation.intake.webhook import handle

DATA = Path(__file__).parents[2] / "data" / "examined"
MAILS = json.loads((DATA / "mails.json").read_text())["cases"]
HOOKS = json.loads((DATA / "webhooks.json").read_text())
NOW = 1_790_100_000.0
HARMLESS = ("autoresponded", "unknown", "rejected", "any", "not-complained", "harmless")
HARMFUL = (EventType.BOUNCED, EventType.COMPLAINED, EventType.UNSUBSCRIBED)


def graded(event, want):
    """Every word of an expectation, and what no expectation may allow."""
    if want["type"] == "harmless":
        assert event.type not in HARMFUL
    elif want["type"] not in ("any", "not-complained"):
        assert event.type == want["type"]
    if want["recipient"] not in ("any", None):
        assert event.recipient == want["recipient"]
    if want["hard"] is not None:
        assert (event.cls is BounceClass.HARD) == want["hard"]
    if want["type"] != "complained":
        assert event.type is not EventType.COMPLAINED
    if want["type"] in HARMLESS:
        assert event.suppress is None


@pytest.mark.parametrize("case", MAILS, ids=[c["mail"] for c in MAILS])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_mail(case, line_end):
    data = (DATA / case["mail"]).read_bytes().replace(b"\n", line_end)
    events = parse_report(data, now=NOW)
    assert len(events) == len(case["want"])
    for event, want in zip(events, case["want"], strict=True):
        graded(event, want)


@pytest.mark.parametrize(
    "case", HOOKS["cases"], ids=[f"{c['provider']}-{c['name']}" for c in HOOKS["cases"]]
)
def test_payload(case):
    body = case["body"] if isinstance(case["body"], str) else json.dumps(case["body"])
    taken = handle(case["provider"], {}, body.encode(), secret=None, now=HOOKS["now"])
    assert not taken.problems
    assert len(taken.events) == len(case["want"])
    for event, want in zip(taken.events, case["want"], strict=True):
        graded(event, want)


@given(st.sampled_from([c["mail"] for c in MAILS]), st.integers(0, 2500), st.binary(max_size=30))
@settings(max_examples=200)
def test_whatever_bytes_it_holds_a_report_can_be_kept(name, place, junk):
    data = (DATA / name).read_bytes()
    for event in parse_report(data[:place] + junk + data[place:], now=NOW):
        kept = printable(event)
        assert b"\\u0000" not in msgspec.json.encode(kept)
        assert kept.recipient is None or kept.recipient.encode()


def test_enough_of_each():
    assert len([c for c in MAILS if c["half"] == "first"]) >= 60
    assert len([c for c in MAILS if c["half"] == "second"]) >= 30
    assert len([c for c in MAILS if c["half"] == "fourth"]) >= 100
    assert len(HOOKS["cases"]) >= 40
    assert len({c["provider"] for c in HOOKS["cases"]}) == 8
