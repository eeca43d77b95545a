"""Bounce mails, complaints and automatic answers in the shapes of many MTAs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailweir.contracts.events import BounceClass, EventType
from mailweir.mail import verp
from mailweir.mail.bounce_parse import parse_report

DATA = Path(__file__).parents[2] / "data"
CASES = json.loads((DATA / "dsn" / "expected.json").read_text())["cases"]
NOW = 1_790_100_000.0


def test_enough_shapes():
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", sorted(CASES))
def test_case(name):
    events = parse_report((DATA / name).read_bytes(), now=NOW)
    assert len(events) == len(CASES[name])
    for event, want in zip(events, CASES[name], strict=True):
        assert event.type == want["type"]
        assert event.recipient == want["recipient"]
        if want["class"] is not None:
            assert event.category == want["category"]
            assert event.cls == want["class"]
        assert (event.suppress.scope if event.suppress else None) == want["suppress"]


@pytest.mark.parametrize("name", sorted(CASES))
def test_line_ends_and_cuts_do_no_harm(name):
    data = (DATA / name).read_bytes()
    assert [
        (e.type, e.recipient, e.category)
        for e in parse_report(data.replace(b"\n", b"\r\n"), now=NOW)
    ] == [(e.type, e.recipient, e.category) for e in parse_report(data, now=NOW)]
    for cut in range(0, len(data), max(1, len(data) // 15)):
        for event in parse_report(data[:cut], now=NOW):
            if CASES[name][0]["type"] not in ("complained", "unsubscribed"):
                assert event.type not in (EventType.COMPLAINED, EventType.UNSUBSCRIBED)
            if CASES[name][0]["type"] in ("autoresponded", "unknown"):
                assert event.suppress is None


@given(st.binary(max_size=3000))
@settings(max_examples=150)
def test_any_bytes(data):
    events = parse_report(data, now=NOW)
    assert events
    assert all(e.type is not EventType.COMPLAINED for e in events)
    assert msgspec.json.encode(events)


@given(st.sampled_from(sorted(CASES)), st.integers(0, 3000), st.binary(min_size=1, max_size=40))
@settings(max_examples=150)
def test_damage_anywhere(name, place, junk):
    data = (DATA / name).read_bytes()
    assert msgspec.json.encode(parse_report(data[:place] + junk + data[place:], now=NOW))


def test_our_token_names_the_job():
    key = b"k" * 32
    token = verp.make(77, key, "bounce.example.com", NOW)
    data = (DATA / "dsn" / "postfix-unknown.eml").read_bytes()
    by_header = data.replace(b"To: s@example.com", b"To: <" + token.upper().encode() + b">", 1)
    assert parse_report(by_header, now=NOW, keys=[key])[0].job_id == 77
    assert parse_report(data, now=NOW, keys=[key], envelope_to=token)[0].job_id == 77
    assert parse_report(data, now=NOW, keys=[b"x" * 32], envelope_to=token)[0].job_id is None
    complaint = (DATA / "arf" / "redacted.eml").read_bytes()
    complaint = complaint.replace(b"<s@example.com>", f"<{token}>".encode())
    event = parse_report(complaint, now=NOW, keys=[key])[0]
    assert (event.job_id, event.recipient, event.type) == (77, None, EventType.COMPLAINED)


def test_the_same_mail_is_the_same_event():
    data = (DATA / "dsn" / "qmail.eml").read_bytes()
    first = parse_report(data, now=NOW)
    second = parse_report(b"Received: from x by y; z\n" + data, now=NOW + 60)
    assert [e.event_id for e in first] == [e.event_id for e in second]


def test_times_are_believed_within_reason():
    data = (DATA / "dsn" / "qmail.eml").read_bytes()
    for date in (
        b"Thu, 01 Jan 1970 00:00:00 +0000",
        b"Tue, 01 Jan 2199 00:00:00 +0000",
        b"nonsense",
    ):
        changed = data.replace(b"Mon, 21 Sep 2026 12:00:00 +0000", date, 1)
        at = parse_report(changed, now=NOW)[0].occurred_at
        assert NOW - 30 * 86400 <= at <= NOW


@pytest.mark.parametrize(
    "data",
    [
        b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n" * 20_000,
        b"Content-Type: message/delivery-status\n\n"
        + b"Final-Recipient: rfc822; a@b.c\n\n" * 20_000,
        b"Subject: failure notice\n\n" + b"<a@example.net>: x\n" * 20_000,
        b"Subject: failure notice\n\n" + b"a@" * 200_000,
        b"Subject: failure notice\n\n" + b"<" * 400_000,
        b"Subject: failure notice\n\n" + (b"deliver " * 100 + b"\n") * 500,
        b"X: y\n " * 50_000,
        b"Subject: " + b"=?utf-8?q?a?= " * 20_000 + b"\n\n",
        b"From: MAILER-DAEMON@x\nSubject: Undeliverable\nContent-Type: text/html\n\n"
        + b"<a " * 100_000,
        b"From: MAILER-DAEMON@x\nSubject: Undeliverable\nContent-Type: text/html\n\n"
        + b"<style " * 60_000,
        b"Subject: failure notice\n\n"
        + b"".join(b"<u%d@example.net>: x\n" % n for n in range(20_000)),
        b"To: x\nunfolded\n" * 20_000 + b"\n",
        b"Subject: failure notice\n\n" + (b"x" * 70 + b"=\n") * 6_000,
    ],
)
def test_bounded(data):
    began = time.process_time()
    assert parse_report(data, now=NOW)
    # a quarter of a second where it is slowest; what grew with the square would take minutes
    assert time.process_time() - began < 3.0


def test_a_delay_never_suppresses():
    for name in CASES:
        for event in parse_report((DATA / name).read_bytes(), now=NOW):
            if event.type is EventType.DEFERRED:
                assert event.suppress is None
                assert event.cls is not BounceClass.HARD
