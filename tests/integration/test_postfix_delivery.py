"""Delivery into a real Postfix, and through one as smarthost: byte for byte."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import pytest

from mailweir.contracts.ids import format_id
from mailweir.contracts.policy import Auth, Provider, Source, Tls
from tests.services.mailbox import body_of
from tests.services.postfix import PASSWORD, USER, Postfix, SmtpSink
from tests.unit.delivery.scripted import Scripted
from tests.unit.delivery.sending import Sender, hop, mail, mails
from tests.unit.test_dkim import SIGNERS, verified
from workers.delivery.dkim import sign_all
from workers.delivery.types import Envelope, Hop

HEAD = (
    b"From: a@acme.test\r\nTo: b@in.test\r\nSubject: bytes\r\nMessage-ID: <1@acme.test>\r\n"
    b"Date: Mon, 2 Nov 2026 10:00:00 +0000\r\n\r\n"
)
BODIES = {
    "plain": b"hello\r\n",
    "leading dots": b".\r\n..\r\n...three\r\n.x\r\n\r\n.\r\nend\r\n",
    "long line": b"y" * 40_000 + b"\r\nafter\r\n",
    "8-bit": "Grüße, Straße, 東京\r\n".encode() + bytes(range(128, 256)) + b"\r\n",
    "blank lines at the end": b"text\r\n\r\n\r\n\r\n",
    "empty": b"",
    "1 MB": (b"." + b"z" * 76 + b"\r\n") * 13_000,
}


@pytest.mark.parametrize("chunking", [True, False], ids=["BDAT", "DATA"])
@pytest.mark.parametrize("name", BODIES)
async def test_bytes_arrive_as_signed(postfix: Postfix, name: str, chunking: bool) -> None:
    body = BODIES[name]
    data = sign_all(HEAD + body, SIGNERS, 1_700_000_000)
    async with Sender(chunking=chunking) as sender:
        (result,) = await sender.send(postfix.port, [mail(data=data, rcpt="b@in.test")])
    assert result.accepted, result
    assert result.tls
    assert result.conversation is not None
    assert ("BDAT" in result.conversation) == chunking
    assert f"ENVID={format_id(1)}" in result.conversation
    (raw,) = postfix.arrived()
    assert body_of(raw) == body
    if name != "empty":
        assert verified(raw.replace(b"\n", b"\r\n")) == [True, True]


async def test_fifty_mails_over_a_few_connections_all_arrive(postfix: Postfix) -> None:
    async with Sender(provider=Provider("p", connections=4, per_connection=7)) as sender:
        batch = [mail(i, rcpt=f"u{i}@in.test") for i in range(50)]
        results = await sender.send(postfix.port, batch, connections=4)
    assert sum(r.accepted for r in results) == 50
    assert len(postfix.arrived(50)) == 50
    assert sender.peak <= 4


async def test_replies_of_a_real_server(postfix: Postfix) -> None:
    async with Sender() as sender:
        results = await sender.send(
            postfix.port,
            [
                mail(1, rcpt="nobody@in.test"),
                mail(2, rcpt="grey@in.test"),
                mail(3, rcpt="good@in.test"),
                mail(4, rcpt="x@elsewhere.test"),
            ],
        )
    replies = {r.job_id: (r.stage, r.code, r.reply[:9]) for r in results}
    assert replies == {
        1: ("rcpt", 550, "550 5.1.1"), 2: ("rcpt", 450, "450 4.2.0"),
        3: ("dot", 250, "250 2.0.0"), 4: ("rcpt", 454, "454 4.7.1"),
    }  # fmt: skip
    postfix.arrived()


def smarthost(
    mechanism: str = "auto", secret: str = "env:RELAY_PASSWORD", tls: Tls | None = None
) -> Source:
    auth = Auth(USER, secret, mechanism)
    return Source("relay", kind="relay", host="localhost", auth=auth, tls=tls)


@pytest.mark.parametrize("mechanism", ["auto", "plain", "login", "cram-md5"])
async def test_through_a_smarthost_with_auth_and_starttls(
    postfix: Postfix, mechanism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_PASSWORD", PASSWORD)
    source = smarthost(mechanism, tls=Tls("verified", str(postfix.ca_file)))
    data = sign_all(HEAD + BODIES["leading dots"], SIGNERS, 1_700_000_000)
    port = Hop("localhost", postfix.submission, "127.0.0.1", trusted=True)
    async with Scripted(port=postfix.relay_port) as next_host, Sender(source) as sender:
        results = await sender.send(
            [port], [mail(1, data, "b@out.test"), mail(2, data, "c@in.test")], tls="verified"
        )
        assert [r.accepted for r in results] == [True, True], results
        (stored,) = postfix.arrived()
        for _ in range(1200):
            if next_host.mails:
                break
            await asyncio.sleep(0.05)  # another program sends there: no signal
    (relayed,) = next_host.mails
    assert verified(relayed.data) == [True, True], "the smarthost broke the signature"
    assert relayed.data.endswith(BODIES["leading dots"])
    assert verified(stored.replace(b"\n", b"\r\n")) == [True, True]
    for result in results:
        assert result.tls
        assert PASSWORD not in (result.conversation or "")
    first = results[0].conversation or ""
    assert "AUTH" in first
    assert "***" in first
    expected = "PLAIN" if mechanism == "auto" else mechanism.upper()
    assert postfix.auth.logins[-1] == expected


async def test_rotated_password_is_fetched_again_once(
    postfix: Postfix, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """535, the secret asked anew, and on with it (P4, S20); a wrong one stays stage ``auth``."""
    secret = tmp_path / "relay"
    secret.write_text(PASSWORD)
    source = smarthost(secret=f"file:{secret}")
    relay = [Hop("localhost", postfix.submission, "127.0.0.1", trusted=True)]
    async with Sender(source) as sender:
        assert (await sender.one_to(relay, "a@in.test", tls="required")).accepted
        monkeypatch.setattr(postfix.auth, "password", "new one")
        before = os.stat(secret)
        secret.write_text("new one")
        # same size and time: only the 535 can tell that the file changed
        os.utime(secret, ns=(before.st_atime_ns, before.st_mtime_ns))
        await sender.transport.close()
        assert (await sender.one_to(relay, "b@in.test", tls="required")).accepted
        monkeypatch.setattr(postfix.auth, "password", "unknown to us")
        await sender.transport.close()
        refused = await sender.one_to(relay, "c@in.test", tls="required")
    assert (refused.stage, refused.code) == ("auth", 535)
    postfix.arrived(2)


@pytest.mark.parametrize(
    ("tls", "ca", "host", "works"),
    [
        ("verified", True, "localhost", True),
        ("verified", True, "other.test", False),
        ("verified", False, "localhost", False),
        ("required", False, "other.test", True),
        ("opportunistic", False, "other.test", True),
        ("none", False, "other.test", True),
    ],
)
async def test_tls_policies(postfix: Postfix, tls: str, ca: bool, host: str, works: bool) -> None:
    ca_file = str(postfix.ca_file) if ca else None
    source = Source("s1", tls=Tls(tls, ca_file))
    async with Sender(source) as sender:
        (result,) = await sender.send([hop(postfix.port, host)], [mail(rcpt="b@in.test")], tls=tls)
    assert result.accepted == works, result
    if works:
        assert result.tls == (tls != "none")
        postfix.arrived()
    else:
        assert (result.stage, result.error) == ("starttls", "tls")


async def test_a_thousand_mails_into_smtp_sink(smtp_sink: SmtpSink) -> None:
    provider = Provider("p", connections=10, per_connection=1000)
    async with Sender(provider=provider) as sender:
        results = await sender.send(smtp_sink.port, mails(1000), connections=10)
    assert sum(r.accepted for r in results) == 1000
    assert sender.peak <= 10


def test_the_certificate_is_the_one_we_made(postfix: Postfix) -> None:
    context = ssl.create_default_context(cafile=str(postfix.ca_file))
    assert context.cert_store_stats()["x509"] == 1


def test_an_envelope_cannot_carry_a_second_command() -> None:
    for rcpt in ("a@b.c>\r\nRCPT TO:<x@y.z", "a@b\nDATA", "a@b\0", "<a@b.c>", "a b@c.d", ""):
        with pytest.raises(ValueError, match="rcpt"):
            Envelope(1, "", rcpt, b"\r\n")
