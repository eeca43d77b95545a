"""Building and scanning messages, checked with the stdlib's parser."""

from __future__ import annotations

import email
import email.policy
import time
from email.message import EmailMessage

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailweir.mail import content, headers
from mailweir.mail.content import Attachment, InvalidContent, InvalidMessage, scan
from mailweir.mail.mime_build import base_name

BASE = b"From: a@x.test\r\nTo: b@y.test\r\nSubject: s\r\n"


def _parse(raw: bytes) -> EmailMessage:
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)


@settings(max_examples=300)
@given(
    _TEXT,
    st.none() | _TEXT,
    st.lists(st.tuples(st.text(max_size=30), st.binary(max_size=200)), max_size=3),
)
def test_built_messages_read_back(
    text: str, html: str | None, files: list[tuple[str, bytes]]
) -> None:
    raw = content.build(
        [headers.line("Subject", "x")],
        text=text,
        html=html,
        attachments=[Attachment(name, "application/pdf", data) for name, data in files],
        seed=b"1",
    )
    assert raw.isascii()
    assert not content.has_bare_breaks(raw)
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    message = _parse(raw)
    assert not message.defects
    plain = message.get_body(("plain",))
    assert plain is not None
    assert _lines(plain) == _unix(text)
    if html is not None:
        body = message.get_body(("html",))
        assert body is not None
        assert _lines(body) == _unix(html)
    found = [(p.get_filename(), p.get_content()) for p in message.iter_attachments()]
    assert [data for _, data in found] == [data for _, data in files]
    assert [name for name, _ in found] == [base_name(name) for name, _ in files]
    assert scan(BASE.replace(b"Subject: s\r\n", b"") + raw).content.endswith(
        raw.partition(b"\r\n\r\n")[2]
    )


def _lines(part: object) -> str:
    payload = part.get_payload(decode=True)  # type: ignore[attr-defined]  # stdlib's loose types
    return str(payload.decode("utf-8").replace("\r\n", "\n"))


def _unix(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else text + "\n"


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ('a"\r\nX: 1.txt', "a_X_ 1.txt"),
        ("../../x", "x"),
        ("..\\..\\x.txt", "x.txt"),
        ("", "attachment"),
        ("..", "attachment"),
        ("x" * 500 + ".pdf", "x" * 146 + ".pdf"),
    ],
)
def test_attachment_names(given_name: str, kept: str) -> None:  # H19
    raw = content.build([], text="x", attachments=[Attachment(given_name, "text/csv", b"1")])
    (part,) = _parse(raw).iter_attachments()
    assert part.get_filename() == kept
    assert set(part.keys()) == {"Content-Type", "Content-Transfer-Encoding", "Content-Disposition"}


def test_a_message_needs_content() -> None:
    with pytest.raises(InvalidContent):
        content.build([])
    with pytest.raises(InvalidContent):
        content.build([], text="a\ud800")
    with pytest.raises(InvalidContent):
        content.build([], text="a", attachments=[Attachment("a", "text", b"")])


# --- ready messages


def test_a_ready_message_stays_as_it_is() -> None:
    raw = (
        BASE
        + b"Message-ID: <1@x.test>\r\nX-Odd:  two  spaces\r\n folded\r\n\r\n.dot\r\n..x\r\n\xe4\xf6\r\n"
    )
    scanned = scan(raw)
    assert scanned.content == raw
    assert scanned.first("message-id") == "<1@x.test>"
    assert scanned.first("x-odd") == "two  spaces folded"


def test_own_headers_and_bcc_never_leave() -> None:  # S3, H12
    raw = (
        b"Bcc: c@z.test\r\nX-Mailweir-Pool: p\r\nx-mailweir-TAG: a,\r\n b\r\nReturn-Path: <r@x.test>\r\n"
        + BASE
        + b"\r\nhi\r\n"
    )
    scanned = scan(raw)
    assert scanned.content == BASE + b"\r\nhi\r\n"
    assert scanned.own == (("pool", "p"), ("tag", "a, b"))
    assert scanned.bcc == ("c@z.test",)
    assert scanned.dropped == ("bcc", "return-path")


@pytest.mark.parametrize("bare", [b"a\nb", b"a\rb", b"a\r\r\nb", b"\n.\n", b"\r.\r"])
def test_bare_breaks_become_crlf(bare: bytes) -> None:  # M2
    scanned = scan(BASE + b"\r\n" + bare)
    assert not content.has_bare_breaks(scanned.content)


REFUSED = {
    "empty": b"",
    "blank": b"\r\n\r\n",
    "body only": b"hello world\r\n",
    "no header": b"\r\nhello\r\n",
    "H6 blank before colon": b"Subject : x\r\n" + BASE + b"\r\nx",
    "first continued": b" x\r\n" + BASE + b"\r\nx",
    "H10 large": b"X-A: "
    + b"x" * 900
    + b"\r\n"
    + b"".join(b" " + b"y" * 900 + b"\r\n" for _ in range(100))
    + BASE
    + b"\r\nx",
    "H11": b"".join(b"X-%d: 1\r\n" % i for i in range(1001)) + BASE + b"\r\nx",
    "H14 two From": b"From: c@x.test\r\n" + BASE + b"\r\nx",
    "two Subject": b"Subject: c\r\n" + BASE + b"\r\nx",
    "H17 8 bit": b"X-A: \xe4\r\n" + BASE + b"\r\nx",
    "NUL in header": b"X-A: a\0b\r\n" + BASE + b"\r\nx",
    "NUL in body": BASE + b"\r\na\0b",
    "M3 long line": BASE + b"\r\n" + b"x" * 10_000_000,
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_refused_messages(raw: bytes) -> None:
    begun = time.process_time()
    with pytest.raises(InvalidMessage):
        scan(raw)
    assert time.process_time() - begun < 1.0


def test_headers_only_is_an_empty_body() -> None:  # M12
    assert scan(BASE).content == BASE + b"\r\n"
    assert scan(BASE + b"\r\n").content == BASE + b"\r\n"


def test_a_long_folded_header_takes_linear_time() -> None:  # H16
    raw = b"X-A: 1\r\n" + b" x\r\n" * 300 + BASE + b"\r\nhi\r\n"
    begun = time.process_time()
    assert scan(raw).content == raw
    assert time.process_time() - begun < 0.1


def _nested(depth: int) -> bytes:
    out = BASE
    for i in range(depth):
        out += b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (i, i)
    return out + b"\r\nx\r\n"


def _many(parts: int) -> bytes:
    head = BASE + b"Content-Type: multipart/mixed; boundary=bb\r\n\r\n"
    return head + b"--bb\r\n\r\nx\r\n" * parts + b"--bb--\r\n"


@pytest.mark.parametrize("raw", [_nested(1000), _many(10_000)], ids=["M4", "M5"])
def test_too_many_parts(raw: bytes) -> None:
    begun = time.process_time()
    with pytest.raises(InvalidMessage, match="MIME parts"):
        scan(raw)
    assert time.process_time() - begun < 0.1


def test_odd_mime_is_relayed() -> None:  # M6-M9
    for odd in (
        b"multipart/mixed",
        b'multipart/mixed; boundary=" "',
        b'text/plain; charset="../../etc"',
    ):
        raw = (
            BASE + b"Content-Type: " + odd + b"\r\nContent-Transfer-Encoding: base64\r\n\r\n!!\r\n"
        )
        assert scan(raw).content == raw


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes_scan_or_are_refused(junk: bytes) -> None:
    try:
        scanned = scan(BASE + junk)
    except InvalidMessage:
        return
    assert not content.has_bare_breaks(scanned.content)
    assert b"\r\n\r\n" in scanned.content
