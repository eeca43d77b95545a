"""The gate for header names and values (H1-H20), checked with the stdlib's reader."""

from __future__ import annotations

import email
import email.policy
from email.header import decode_header, make_header

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailweir.mail import headers
from mailweir.mail.headers import InvalidHeader


@pytest.mark.parametrize(
    "value", ["a\r\nBcc: x", "a\nb", "a\rb", "a\0b", "a\x7fb", "a\ud800b", "a\x0bb"]
)
def test_values_that_break_lines_are_refused(value: str) -> None:  # H1-H4
    with pytest.raises(InvalidHeader):
        headers.line("X-A", value)


@pytest.mark.parametrize("value", ["a\u2028b", "a\u0085b"])
def test_unicode_line_separators_are_encoded(value: str) -> None:  # H5
    raw = headers.line("X-A", value)
    assert raw.count(b"\r\n") == 1
    assert raw.isascii()
    assert _read(raw, "X-A") == value


@pytest.mark.parametrize(
    "name",
    ["Sub ject", "X-A\r\nBcc", "", "X:A", "X\u00e4", "X" * 77, "Bcc", "From", "SENDER", "Received",
     "Return-Path", "DKIM-Signature", "ARC-Seal", "X-Mailweir-Ref", "Content-Type"],
)  # fmt: skip
def test_names(name: str) -> None:  # H6-H9, H12
    with pytest.raises(InvalidHeader):
        headers.check_name(name)


def test_a_value_has_a_size() -> None:  # H10
    with pytest.raises(InvalidHeader):
        headers.line("X-A", "x" * 1_000_000)


def test_encoded_words_are_text_and_not_trusted() -> None:  # H13 at the API
    raw = headers.line("Subject", "=?utf-8?q?hi=0D=0ABcc=3A_e=40v?=")
    assert raw.count(b"\r\n") == 1
    assert b"Bcc" not in raw.split(b"\r\n")[1]
    assert _read(raw, "Subject") == "=?utf-8?q?hi=0D=0ABcc=3A_e=40v?="


@pytest.mark.parametrize("value", ["<a@b\r\nX: y>", "a@b", "<a b@c>", "<a@b> <c@d>"])
def test_message_ids(value: str) -> None:  # H18
    with pytest.raises(InvalidHeader):
        headers.line("Message-ID", value)


@pytest.mark.parametrize(
    "value",
    [
        "<javascript:alert(1)>",
        "<http://x.test/u>",
        "https://x.test/u",
        "<https://x.test/ u>",
        "<https://x>\r\n",
    ],
)
def test_unsubscribe_links(value: str) -> None:  # H20
    with pytest.raises(InvalidHeader):
        headers.line("List-Unsubscribe", value)


def test_good_structured_headers() -> None:
    assert headers.line("List-Unsubscribe", "<https://x.test/u>,<mailto:u@x.test>")
    assert headers.line("References", "<a@b.cd> <e@f.gh>")
    assert headers.line("Reply-To", '"Ä, B" <a@b.cd>, c@d.ef').isascii()


def _read(raw: bytes, name: str) -> str:
    message = email.message_from_bytes(raw + b"\r\n", policy=email.policy.compat32)
    assert list(message.keys()) == [name], message.items()
    return str(make_header(decode_header(message[name].replace("\r\n", ""))))


_TEXT = st.text(
    st.characters(
        exclude_categories=["Cs"], exclude_characters="".join(map(chr, [*range(32), 127]))
    ),
    max_size=400,
)


@settings(max_examples=400)
@given(_TEXT)
def test_any_text_reads_back_and_stays_one_header(text: str) -> None:
    raw = headers.line("X-Note", text)
    lines = raw.split(b"\r\n")
    assert raw.isascii()
    assert lines[-1] == b""
    assert all(len(li) <= 998 for li in lines)
    assert all(li[:1] in (b" ", b"\t") and li.strip() for li in lines[1:-1])
    assert b"\r" not in raw.replace(b"\r\n", b"")
    assert _read(raw, "X-Note") == text.strip(" \t")


@settings(max_examples=300)
@given(st.text(max_size=60))
def test_no_text_makes_a_second_header(text: str) -> None:
    try:
        raw = headers.line("Subject", text)
    except InvalidHeader:
        return
    message = email.message_from_bytes(raw + b"\r\nbody", policy=email.policy.default)
    assert message.keys() == ["Subject"]
