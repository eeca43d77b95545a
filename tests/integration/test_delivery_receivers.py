"""Exim and OpenSMTPD as receivers: bytes arrive as signed, and OpenDKIM agrees, also after Postfix."""

from __future__ import annotations

import asyncio

import pytest

from mailweir.contracts.policy import Auth, Provider, Source
from tests.integration.test_postfix_delivery import BODIES, HEAD
from tests.services.exim import Exim
from tests.services.mailbox import body_of
from tests.services.opendkim import Verify
from tests.services.opensmtpd import OpenSmtpd
from tests.services.postfix import PASSWORD, USER, Postfix
from tests.unit.delivery.scripted import Scripted
from tests.unit.delivery.sending import Sender, mail
from tests.unit.test_dkim import RECORDS, SIGNERS, verified
from workers.delivery.dkim import sign_all
from workers.delivery.types import Hop

PASSED = {"r1": "pass", "e1": "pass"}


def signed(body: bytes) -> bytes:
    return sign_all(HEAD + body, SIGNERS, 1_700_000_000)


@pytest.mark.parametrize("chunking", [True, False], ids=["BDAT", "DATA"])
@pytest.mark.parametrize("name", BODIES)
async def test_exim_stores_what_was_signed(exim: Exim, name: str, chunking: bool) -> None:
    async with Sender(chunking=chunking) as sender:
        (result,) = await sender.send(
            exim.port, [mail(data=signed(BODIES[name]), rcpt="b@in.test")]
        )
    assert result.accepted, result
    assert result.tls
    assert result.conversation is not None
    assert ("BDAT" in result.conversation) == chunking
    (raw,) = exim.inbox.arrived()
    assert body_of(raw) == BODIES[name]
    if name != "empty":
        assert verified(raw.replace(b"\n", b"\r\n")) == [True, True]


@pytest.mark.parametrize("name", BODIES)
async def test_opensmtpd_stores_what_was_signed(opensmtpd: OpenSmtpd, name: str) -> None:
    async with Sender() as sender:
        (result,) = await sender.send(
            opensmtpd.port, [mail(data=signed(BODIES[name]), rcpt="b@in.test")]
        )
    assert result.accepted, result
    (raw,) = opensmtpd.inbox.arrived()
    assert body_of(raw) == BODIES[name]
    if name != "empty":
        assert verified(raw.replace(b"\n", b"\r\n")) == [True, True]


@pytest.mark.parametrize("server", ["exim", "opensmtpd"])
async def test_refusals_between_good_mails(server: str, request: pytest.FixtureRequest) -> None:
    receiver: Exim | OpenSmtpd = request.getfixturevalue(server)
    mails = [mail(1, rcpt="a@in.test"), mail(2, rcpt="x@elsewhere.test"), mail(3, rcpt="b@in.test")]
    if server == "exim":
        mails += [mail(4, rcpt="nobody@in.test"), mail(5, rcpt="grey@in.test")]
    async with Sender() as sender:
        results = {r.job_id: r for r in await sender.send(receiver.port, mails)}
    assert results[1].accepted
    assert results[3].accepted
    assert (results[2].stage, results[2].code) == ("rcpt", 550)
    if server == "exim":
        assert results[4].reply.startswith("550 5.1.1")
        assert results[5].reply.startswith("451 4.2.0")
    receiver.inbox.arrived(2)


@pytest.mark.parametrize("server", ["exim", "opensmtpd"])
async def test_fifty_mails_over_three_connections(
    server: str, request: pytest.FixtureRequest
) -> None:
    receiver: Exim | OpenSmtpd = request.getfixturevalue(server)
    provider = Provider("p", connections=3, per_connection=9)
    async with Sender(provider=provider) as sender:
        batch = [mail(i, rcpt=f"u{i}@in.test") for i in range(50)]
        results = await sender.send(receiver.port, batch, connections=3)
        assert sender.peak <= 3
    assert sum(r.accepted for r in results) == 50
    assert len(receiver.inbox.arrived(50)) == 50


@pytest.mark.parametrize("name", BODIES)
def test_opendkim_verifies_both_signatures(opendkim: Verify, name: str) -> None:
    assert opendkim(signed(BODIES[name]), RECORDS) == PASSED


@pytest.mark.parametrize(
    ("old", "new"), [(b"hello", b"hallo"), (b"bytes", b"bites"), (b"a@acme", b"e@acme")]
)
def test_opendkim_sees_a_change(opendkim: Verify, old: bytes, new: bytes) -> None:
    data = signed(BODIES["plain"])
    said = opendkim(data.replace(old, new, 1), RECORDS)
    assert "pass" not in said.values(), said


async def test_opendkim_verifies_after_postfix_relayed(
    postfix: Postfix, opendkim: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_PASSWORD", PASSWORD)
    source = Source("relay", kind="relay", host="localhost", auth=Auth(USER, "env:RELAY_PASSWORD"))
    hops = [Hop("localhost", postfix.submission, "127.0.0.1", trusted=True)]
    bodies = [BODIES[name] for name in ("leading dots", "8-bit", "blank lines at the end")]
    async with Scripted(port=postfix.relay_port) as next_host, Sender(source) as sender:
        results = await sender.send(
            hops,
            [mail(i, signed(body), "b@out.test") for i, body in enumerate(bodies)],
            tls="required",
        )
        assert all(result.accepted for result in results), results
        for _ in range(1200):
            if len(next_host.mails) == len(bodies):
                break
            await asyncio.sleep(0.05)  # another program sends there: no signal
    assert len(next_host.mails) == len(bodies)
    for relayed in next_host.mails:
        assert b"\r\nReceived:" in b"\r\n" + relayed.data, "it did not go through Postfix"
        assert opendkim(relayed.data, RECORDS) == PASSED
