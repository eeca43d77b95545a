"""The SMTP door: a real client, and hostile bytes by hand."""

from __future__ import annotations

import asyncio
import base64
import smtplib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mailweir.contracts.ids import parse_id
from mailweir.plumbing import apikeys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.settings import SubmissionSettings
from producer.doors.smtp import UnsafeListener, open_smtp, tls_context
from tests.services.door import Door, open_door

RAW = b"From: a@acme.test\r\nTo: x@y.test\r\nSubject: s\r\nX-Mailweir-Tag: t\r\n\r\n.dot\r\n..two\r\n\xe4\r\n"


class Smtp:
    def __init__(self, door: Door, port: int) -> None:
        self.door, self.port = door, port

    async def talk(self, *lines: bytes, login: bool = True) -> list[bytes]:
        """Send each piece after the answer to the one before; all answers."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        answers = [await reader.readline()]
        token = base64.b64encode(b"\0u\0" + self.door.key.encode())
        for line in (
            b"HELO x\r\n",
            b"EHLO x\r\n",
            *((b"AUTH PLAIN " + token + b"\r\n",) if login else ()),
            *lines,
        ):
            writer.write(line)
            await writer.drain()
            while True:
                answer = await asyncio.wait_for(reader.readline(), 5)
                if answer[3:4] != b"-":
                    break
            answers.append(answer)
            if not answer:
                break
        writer.close()
        return answers[3 + login :]


@pytest.fixture
async def smtp(tmp_path: Path) -> AsyncIterator[Smtp]:
    submission: dict[str, Any] = {"port": 0, "max_recipients": 3, "connections": 5}
    with open_door(tmp_path, submission=submission, web={"max_body": 100_000}) as door:
        server = await open_smtp(door.settings, door.reception, door.keys, Clock())
        async with server:
            yield Smtp(door, server.sockets[0].getsockname()[1])


async def test_a_message_is_committed_before_250(smtp: Smtp) -> None:
    def send() -> tuple[int, bytes]:
        with smtplib.SMTP("127.0.0.1", smtp.port) as client:
            client.login("mw_" + smtp.door.key[3:15], smtp.door.key.partition(".")[2])
            client.mail("a@acme.test")
            client.rcpt("b@x.test")
            client.rcpt("c@y.test")
            return client.data(RAW)

    code, text = await asyncio.to_thread(send)
    assert code == 250, text
    jobs = smtp.door.spool.jobs_of(parse_id(text.decode().rpartition(" ")[2]))
    assert [(j.recipient, j.mail_from, j.meta.tags) for j in jobs] == [
        ("b@x.test", "a@acme.test", ("t",)),
        ("c@y.test", "a@acme.test", ("t",)),
    ]
    content = smtp.door.spool.contents([jobs[0].content_id])[jobs[0].content_id]
    assert content.body == RAW.replace(b"X-Mailweir-Tag: t\r\n", b"")  # byte for byte


async def test_a_repeated_message_is_one(smtp: Smtp) -> None:
    data = (
        RAW.replace(b"\r\n\r\n.dot\r\n..two", b"\r\nMessage-ID: <1@acme.test>\r\n\r\nx") + b".\r\n"
    )
    for _ in range(2):
        answers = await smtp.talk(
            b"MAIL FROM:<a@acme.test>\r\n", b"RCPT TO:<b@x.test>\r\n", b"DATA\r\n", data
        )
        assert answers[-1].startswith(b"250")
    assert smtp.door.spool.counts() == {"transactional": {"accepted": 1}}


@pytest.mark.parametrize(
    "end",
    [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\n", b"\r.\r\n", b"\r\n.\r", b"\n\n.\n\n", b"\r\n\0.\r\n",
     b"\r\n.\0\r\n", b"\r\r\n.\r\r\n", b"\n.\r", b"\r\n\r.\r\n"],
)  # fmt: skip
async def test_smuggling_never_makes_two_messages(smtp: Smtp, end: bytes) -> None:  # S3, M2
    inner = (
        b"MAIL FROM:<e@acme.test>\r\nRCPT TO:<victim@x.test>\r\nDATA\r\nFrom: e@acme.test\r\n\r\nx"
    )
    data = b"From: a@acme.test\r\n\r\nhello" + end + inner + b"\r\n.\r\n"
    answers = await smtp.talk(
        b"MAIL FROM:<a@acme.test>\r\n", b"RCPT TO:<b@x.test>\r\n", b"DATA\r\n", data, b"NOOP\r\n"
    )
    assert answers[3].startswith(b"550")
    assert answers[4].startswith(b"250")  # still in step
    assert smtp.door.spool.counts() == {}


@pytest.mark.parametrize(
    "address",
    [
        b"<e@v.il> SIZE=1",
        b'<"e@v.il> ORCPT=x"@ok.com>',
        b"<@relay,@b:u@c.d>",
        b"<a@[127.0.0.1]>",
        b"<a@x..com>",
        b"<a b@x.com>",
    ],
)
async def test_recipients_pass_the_parser(smtp: Smtp, address: bytes) -> None:  # S7
    answers = await smtp.talk(
        b"MAIL FROM:<a@acme.test>\r\n", b"RCPT TO:" + address + b"\r\n", b"DATA\r\n"
    )
    assert answers[1][:1] == b"5"
    assert answers[2].startswith(b"503")


async def test_who_may_and_how_much(smtp: Smtp) -> None:  # S5, S6
    answers = await smtp.talk(
        b"MAIL FROM:<a@acme.test>\r\n", b"RCPT TO:<b@x.test>\r\n", login=False
    )
    assert {answer[:3] for answer in answers} == {b"530", b"503"} or answers[0].startswith(b"530")
    wrong = b"AUTH PLAIN " + base64.b64encode(b"\0u\0mw_0.x") + b"\r\n"
    answers = await smtp.talk(*[wrong] * 5, login=False)
    assert [answer[:3] for answer in answers] == [b"535", b"535", b"421", b""]
    limited = apikeys.create(smtp.door.database, tenant="t", domains=("acme.test",))
    token = base64.b64encode(b"\0u\0" + limited.encode())
    answers = await smtp.talk(
        b"AUTH PLAIN " + token + b"\r\n", b"MAIL FROM:<a@evil.test>\r\n", login=False
    )
    assert answers[1].startswith(b"550 5.7.1")
    rcpt = [b"RCPT TO:<b%d@x.test>\r\n" % i for i in range(4)]
    answers = await smtp.talk(b"MAIL FROM:<a@acme.test>\r\n", *rcpt)
    assert [a[:3] for a in answers] == [b"250"] * 4 + [b"452"]
    big = b"From: a@acme.test\r\n\r\n" + b"x" * 70 + b"\r\n"
    answers = await smtp.talk(
        b"MAIL FROM:<a@acme.test> SIZE=100001\r\n",
        b"MAIL FROM:<a@acme.test>\r\n",
        b"RCPT TO:<b@x.test>\r\n",
        b"DATA\r\n",
        big + b"y" * 70 + (b"\r\n" + b"z" * 70) * 2000 + b"\r\n.\r\n",
    )
    assert answers[0].startswith(b"552")
    assert answers[-1].startswith(b"552")
    answers = await smtp.talk(
        b"MAIL FROM:<a@acme.test>\r\n", b"RCPT TO:<b@x.test>\r\n", b"DATA\r\n",
        b"From: a@acme.test\r\nFrom: b@acme.test\r\n\r\nx\r\n.\r\n",
    )  # fmt: skip
    assert answers[-1].startswith(b"550 5.6.0")
    assert smtp.door.spool.counts() == {}


async def test_connections_of_one_address(smtp: Smtp) -> None:  # S6
    held = [await asyncio.open_connection("127.0.0.1", smtp.port) for _ in range(5)]
    for reader, _ in held:
        assert (await reader.readline()).startswith(b"220")
    reader, writer = await asyncio.open_connection("127.0.0.1", smtp.port)
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"421")
    writer.close()
    for _, open_writer in held:
        open_writer.close()


def test_no_password_in_clear_off_loopback() -> None:  # S4
    with pytest.raises(UnsafeListener):
        tls_context(SubmissionSettings.model_validate({"host": "0.0.0.0"}))


async def test_starttls_comes_before_auth(tmp_path: Path) -> None:  # S4
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = tmp_path / "pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    submission = {"port": 0, "certificate": pem, "key": pem}
    with open_door(tmp_path, submission=submission) as door:
        server = await open_smtp(door.settings, door.reception, door.keys, Clock())
        async with server:
            port = server.sockets[0].getsockname()[1]
            answers = await Smtp(door, port).talk(
                b"AUTH PLAIN AAA=\r\n", b"MAIL FROM:<a@acme.test>\r\n", login=False
            )
            assert all(answer.startswith((b"530", b"538")) for answer in answers)

            def send() -> dict[str, tuple[int, bytes]]:
                context = ssl.create_default_context(cafile=str(pem))
                context.check_hostname = False
                with smtplib.SMTP("127.0.0.1", port) as client:
                    client.starttls(context=context)
                    client.login("u", door.key)
                    return client.sendmail("a@acme.test", ["b@x.test"], RAW)

            assert await asyncio.to_thread(send) == {}
        assert door.spool.counts() == {"transactional": {"accepted": 1}}
