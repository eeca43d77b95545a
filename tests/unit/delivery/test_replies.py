"""The strict reply reader, and the bytes of the wire, against aiosmtplib as oracle."""

from __future__ import annotations

import asyncio
import re

import aiosmtplib
import pytest
from aiosmtplib.protocol import PERIOD_REGEX, SMTPProtocol, normalize_message_line_endings
from hypothesis import given
from hypothesis import strategies as st

from workers.delivery.conversation import Handshake, hide, mask_address
from workers.delivery.replies import MalformedReply, Reply, ReplyReader, printable
from workers.delivery.smtp import CHECKED_VERSIONS
from workers.delivery.types import Envelope


def read(*pieces: bytes, limit: int = 32 * 1024) -> list[Reply]:
    reader = ReplyReader(limit)
    replies: list[Reply] = []
    for piece in pieces:
        reader.feed(piece, replies)
    return replies


def test_aiosmtplib_is_a_version_we_read() -> None:
    assert aiosmtplib.__version__.startswith(CHECKED_VERSIONS), (
        "workers/delivery/smtp.py overrides private parts of aiosmtplib: read them again"
    )


def test_several_replies_in_one_packet_and_one_in_several() -> None:
    assert read(b"250 a\r\n550-b\r\n55", b"0 c\r\n", b"354") == [
        Reply(250, "250 a"),
        Reply(550, "550-b 550 c", ("b", "c")),
    ]


@pytest.mark.parametrize(
    "bad",
    [b"\r\n", b"25\r\n", b"250_x\r\n", b"099 x\r\n", b"600 x\r\n", b"2 50\r\n", b"\xff\xfe\n",
     b"HTTP/1.1 400\r\n", b"250-a\r\n251 b\r\n", b"150 wait\r\n", b" 250 x\r\n"],
)  # fmt: skip
def test_what_is_no_reply_is_refused(bad: bytes) -> None:
    with pytest.raises(MalformedReply):
        read(bad)


def test_replies_before_the_bad_line_are_kept() -> None:
    reader, replies = ReplyReader(1000), list[Reply]()
    with pytest.raises(MalformedReply):
        reader.feed(b"250 ok\r\nboom\r\n", replies)
    assert replies == [Reply(250, "250 ok")]


@given(st.integers(0, 4), st.integers(1, 200))
def test_size_is_bounded_however_it_comes(lines: int, step: int) -> None:
    data = b"250-x\r\n" * lines + b"250 " + b"y" * 3000
    with pytest.raises(MalformedReply):
        read(*(data[i : i + step] for i in range(0, len(data), step)), limit=1000)


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


@given(st.lists(st.tuples(st.integers(200, 559), st.lists(TEXT, min_size=1, max_size=3))))
def test_well_formed_replies_read_as_aiosmtplib_reads_them(
    said: list[tuple[int, list[str]]],
) -> None:
    wire = b""
    for code, lines in said:
        for i, line in enumerate(lines):
            mark = " " if i == len(lines) - 1 else "-"
            wire += f"{code}{mark}{line}\r\n".encode()

    async def oracle() -> list[tuple[int, str]]:
        protocol = SMTPProtocol()
        protocol._buffer.extend(wire)
        found = [protocol._read_response_from_buffer() for _ in said]
        return [(each.code, each.message) for each in found if each is not None]

    theirs = [(code, "".join(text.split())) for code, text in asyncio.run(oracle())]
    ours = [(r.code, "".join("".join(r.lines).split())) for r in read(wire)]
    assert ours == theirs


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        replies = read(data)
    except MalformedReply:
        return
    assert all(200 <= reply.code < 600 and reply.text.isprintable() for reply in replies)


@given(st.binary(max_size=80))
def test_printable_is_one_safe_line(raw: bytes) -> None:
    assert printable(raw).isprintable()


@given(st.lists(st.sampled_from([b".", b"..", b"a", b"\r\n", b"\r\n.\r\n", b" "]), max_size=30))
def test_stuffing_is_aiosmtplibs(pieces: list[bytes]) -> None:
    data = b"".join(pieces) + b"\r\n"
    theirs = PERIOD_REGEX.sub(b"..", normalize_message_line_endings(data))
    assert Envelope(1, "a@b.c", "d@e.f", data).stuffed() == theirs


@pytest.mark.parametrize(
    "data",
    [b"a\nb\r\n", b"a\rb\r\n", b"a\r\n.\n", b"x\n.\r\n", b"x\r.\r\n", b"\r\n.\r", b"no end", b"",
     b"x\r\r\n.\r\n", b"\n\r\n"],
)  # fmt: skip
def test_smuggling_shapes_never_become_an_envelope(data: bytes) -> None:
    with pytest.raises(ValueError, match="CRLF"):
        Envelope(1, "a@b.c", "d@e.f", data)


@given(
    st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"a", b"\x85", b"\x0c", b"\0"])),
    st.booleans(),
)
def test_an_envelope_has_crlf_alone(pieces: list[bytes], ended: bool) -> None:
    data = b"".join(pieces) + (b"\r\n" if ended else b"")
    good = data.endswith(b"\r\n") and not re.search(rb"\r(?!\n)|(?<!\r)\n", data)
    try:
        Envelope(1, "a@b.c", "d@e.f", data)
    except ValueError:
        assert not good
    else:
        assert good


def test_masks() -> None:
    assert mask_address("jane.doe@x.test") == "j***@x.test"
    assert hide("550 <Jane.Doe@X.test> unknown", "jane.doe@x.test") == "550 <j***@x.test> unknown"
    assert hide("550 no user jane.doe here", "jane.doe@x.test") == "550 no user j*** here"
    assert hide("250 2.1.5 Ok", "ok@x.test") == "250 2.1.5 Ok"
    shake = Handshake(0.0)
    for direction, text in [
        (">", "AUTH LOGIN bWFpbGVy"), ("<", "334 UGFzc3dvcmQ6"), (">", "c2VjcmV0"),
        ("<", "235 2.7.0 ok"), (">", "RSET"),
    ]:  # fmt: skip
        shake.add(0.001, direction, text)
    assert [step[2] for step in shake.steps] == [
        "AUTH LOGIN ***", "334 ***", "***", "235 2.7.0 ok", "RSET",
    ]  # fmt: skip
