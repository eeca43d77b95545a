"""Classification: every known line, laws on any line, and the table in the docs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailweir.contracts.events import BounceClass
from mailweir.mail import classify_rules
from mailweir.mail.classify import classify, of_category
from mailweir.mail.confusion import BEGIN, END, read_lines, table
from mailweir.mail.needed_words import literals
from mailweir.mail.reply import MAX_HINT, code_of, enhanced_of, read

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "tests" / "data" / "replies").glob("*.jsonl"))
LINES = read_lines(FILES)


def test_there_are_enough_lines_with_sources():
    assert len({line.reply for line in LINES}) >= 240
    assert all(line.source for line in LINES)


def test_right_often_enough_and_never_a_false_hard_on_our_own_fault():
    right = hard = 0
    for line in LINES:
        found = classify(line.reply, provider=line.provider, stage=line.stage)
        right += found.category == line.category or found.category in line.also_ok
        hard += (found.cls == "hard") == (line.cls == "hard")
        if line.category in OURS:
            assert found.cls is not BounceClass.HARD, line.reply
            assert found.suppress is None or found.suppress.scope == "pair", line.reply
    assert right / len(LINES) >= 0.97
    assert hard / len(LINES) >= 0.99


OURS = frozenset(
    {
        "rate_limited",
        "reputation_block",
        "blocklisted",
        "policy_block",
        "auth_failure",
        "dns_config",
        "spam_content",
        "greylisted",
        "relay_denied",
        "sender_rejected",
        "tls_required",
        "content_rejected",
        "virus",
        "server_error",
        "network_error",
    }
)


MANUAL = read_lines([ROOT / "tests" / "data" / "replies" / "field_manual.jsonl"])


@pytest.mark.parametrize("line", MANUAL, ids=lambda line: line.reply[:40])
def test_manual_lines(line):
    found = classify(line.reply, provider=line.provider)
    assert found.category == line.category or found.category in line.also_ok
    assert found.cls == line.cls


def test_the_table_in_the_docs_is_current():
    text = (ROOT / "docs" / "classification.md").read_text()
    shown = text.split(BEGIN)[1].split(END)[0].strip()
    assert shown == table(LINES)


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        ("451 4.7.1 Greylisted, try again in 300 seconds", 300),
        ("450 try again in 5 minutes", 300),
        ("450 4.7.1 please retry in 1 hour", 3600),
        ("451 Greylisting in action, please come back in 00:04:59", 299),
        ("421 4.7.0 too many connections, try again in an hour", 3600),
        ("421 too many messages, please try again in a few hours", 7200),
        ("450 please wait 5 minutes and try again", 300),
        ("450 4.2.0 Greylisted for 60 seconds", 60),
        ("450 try again in 999999 days", MAX_HINT),
        ("450 try again later", None),
        ("550 5.1.1 user unknown, try again in 5 minutes", None),
    ],
)
def test_hints(reply, seconds):
    assert classify(reply).retry_after == seconds


@pytest.mark.parametrize(
    ("reply", "code", "enhanced"),
    [
        ("550-5.1.1 a\n550 5.1.1 b", 550, "5.1.1"),
        ("smtp; 550 5.1.1 x", 550, "5.1.1"),
        ("host mx[192.0.2.1] said: 450 4.2.1 busy (in reply to RCPT TO command)", 450, "4.2.1"),
        ("connect to 5.1.1.2[5.1.1.2]:25: refused", None, None),
        ("554 30 Sorry", 554, None),
        ("", None, None),
        ("099 x", None, None),
        ("2 50 ok", None, None),
    ],
)
def test_codes(reply, code, enhanced):
    assert code_of(reply) == code
    assert enhanced_of(reply) == enhanced


def test_the_first_digit_decides():
    """P12: 450 5.1.1 is temporary, 550 4.2.1 permanent."""
    assert classify("450 5.1.1 user unknown").cls is BounceClass.SOFT
    assert classify("450 5.1.1 user unknown").suppress is None
    assert classify("550 4.1.1 user unknown").cls is BounceClass.HARD


def test_stages():
    assert classify("554 no", stage="connect").category == "policy_block"
    assert classify("554 no", stage="connect").retry == "other"
    assert classify("550 no", stage="rcpt").category == "invalid_recipient"
    assert classify("550 no", stage="rcpt").suppress is None  # too little to go on
    assert classify("550 no", stage="dot").category == "policy_block"
    assert classify("450 no", stage="rcpt", first_contact=True).category == "greylisted"
    assert classify("550 5.1.1 user unknown", stage="connect").suppress is None
    assert classify("552 no", stage="mail").category == "message_too_large"
    for name in ("RCPT TO", "rcpt_to", "Rcpt"):
        assert classify("550 no", stage=name).category == "invalid_recipient"
    for name in ("END-OF-DATA", "eod", "greeting"):
        assert classify("550 no", stage=name).category == "policy_block"


@given(st.text(max_size=5000), st.sampled_from([None, "rcpt", "dot", "connect", "x"]))
@settings(max_examples=200)
def test_any_text_gets_an_answer(text, stage):
    found = classify(text, stage=stage)
    assert found.category in classify_rules.rules().categories
    assert 0 <= found.confidence <= 1
    if found.suppress is not None:
        assert found.cls in (BounceClass.HARD, BounceClass.BLOCK)
    if 400 <= (code_of(text) or 0) < 500:
        assert found.cls is not BounceClass.HARD
        assert found.suppress is None


@pytest.mark.parametrize(
    "piece", ["a", " ", "<", "user ", "550-5.1.1 ", "too many ", "(", "@", "recipient not "]
)
def test_long_replies_stay_cheap(piece):
    began = time.process_time()
    classify("550 " + piece * (100_000 // len(piece)))
    assert time.process_time() - began < 0.5


def test_the_word_index_hides_no_match():
    """A pattern left out by the index must not match: the index only saves time."""
    book = classify_rules.rules()
    compiled = [re.compile(pattern) for _, pattern in book.patterns]
    for line in LINES:
        text = read(line.reply).text
        asked = set(book.candidates(text))
        for number, (rule, pattern) in enumerate(book.patterns):
            if number not in asked:
                assert not compiled[number].search(text), (book.rules[rule].id, pattern, text)


@given(
    st.sampled_from(["abc", "(x|yz)", "ab?c", "a{0,3}bcd", "(foo|bar)+", "x[abc]y", r"\bword\b"])
)
def test_literals_are_needed(pattern):
    words = literals(pattern)
    for sample in ("abc", "ac", "xyz", "bcd", "foobar", "xay", "word", "yz", "aabcd"):
        if re.search(pattern, sample) and words:
            assert any(word in sample for word in words)


def test_every_rule_names_its_source_and_is_reachable_once():
    book = classify_rules.rules()
    assert all(rule.source for rule in book.rules)
    ids = [rule.id for rule in book.rules]
    assert len(ids) == len(set(ids))
    for category in book.categories:
        assert of_category(category).category == category


def test_command_answers_every_line():
    lines = [
        "550 5.1.1 user unknown",
        json.dumps({"reply": "451 try again in 2 minutes", "provider": "x", "stage": "rcpt"}),
        "{broken",
        '{"reply": 5}',
        "",
        "\x00\x1b[31m550 spam",
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "classify", "-o", "json"],
        input="\n".join(lines).encode() + b"\n\xff\xfe",
        capture_output=True,
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(lines) + 1
    assert [a["category"] for a in answers[:3]] == ["invalid_recipient", "server_error", "unknown"]
    assert answers[1]["retry_after"] == 120
    assert "error" in answers[2]
    assert "error" in answers[3]
    assert set(answers[0]) == {
        "category",
        "class",
        "blame",
        "retry",
        "suppress",
        "retry_after",
        "confidence",
        "rule",
    }


def test_odd_lines_get_one_answer_each():
    odd = [
        b"",
        b"\r",
        b"[]",
        b"{}",
        b'{"reply": null}',
        b'{"reply": 1e400}',
        b'{"reply": "\\ud800 550"}',
        b'{"reply": "550 5.1.1 no such user", "stage": {"x": 1}, "provider": [], "other": 1}',
        b'{"reply": ["550-5.1.1 a", "550 5.1.1 user unknown"]}',
        b'{"a":' * 5000,
        bytes(byte for byte in range(256) if byte != 10) * 20,
        b"550 " + b"a" * 3_000_000,
        b'{"reply":"' + b"x" * 2_000_000 + b'"}',
        b"\xef\xbb\xbf550 5.1.1 user unknown",
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "classify", "-o", "json"],
        input=b"\n".join(odd),
        capture_output=True,
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(odd)
    hard = [number for number, answer in enumerate(answers) if answer["class"] == "hard"]
    assert hard == [7, 8, 13]


PROGRAM = """
import typer
from console.commands import classify, feedback
app = typer.Typer()
classify.register(app)
feedback.register(app)
app()
"""
