"""The simulated providers, spoken to by the standard library's client."""

from __future__ import annotations

import asyncio
import hashlib
import smtplib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mailweir.plumbing.clock import Clock
from simulator.behaviour import Behaviour
from simulator.control import Simulator, SimulatorError, send_command
from simulator.witness import read

MAIL = b"Subject: hi\r\nX-Mailweir-Ref: abc\r\nMessage-ID: <1@x>\r\n\r\n.leading dot\r\n..two\r\nend\r\n"


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[Simulator]:
    profiles = {"gmail": Behaviour(), "generic": Behaviour(greylist=3600)}
    sim = Simulator(tmp_path, Clock(), profiles=profiles, keep=True)
    await sim.start()
    yield sim
    await sim.stop()


def port(sim: Simulator, domain: str, host: int = 0) -> int:
    return int(sim.mx_map[domain][host].rpartition(":")[2])


def submit(where: int, recipient: str, data: bytes = MAIL) -> tuple[int, bytes]:
    with smtplib.SMTP("127.0.0.1", where, timeout=10) as client:
        client.ehlo("test")
        client.mail("a@sender.test")
        code, text = client.rcpt(recipient)
        if code != 250:
            return code, text
        return client.data(data)


def mail_only(where: int) -> tuple[int, bytes]:
    client = smtplib.SMTP("127.0.0.1", where, timeout=10)
    try:
        client.ehlo("test")
        return client.mail("a@sender.test")
    finally:
        client.close()


async def test_message_is_recorded_byte_for_byte(simulator: Simulator, tmp_path: Path) -> None:
    code, _ = await asyncio.to_thread(submit, port(simulator, "gmail.com"), "x@gmail.com")
    assert code == 250
    (record,) = read(tmp_path / "witness.jsonl")
    assert record["ref"] == "abc"
    assert record["recipient"] == "x@gmail.com"
    assert record["sha256"] == hashlib.sha256(MAIL).hexdigest()
    assert (tmp_path / "mail" / f"{record['sha256']}.eml").read_bytes() == MAIL


async def test_unknown_full_and_greylisted(simulator: Simulator) -> None:
    gmail, generic = port(simulator, "gmail.com"), port(simulator, "*")
    assert (await asyncio.to_thread(submit, gmail, "nouser1@gmail.com"))[0] == 550
    assert (await asyncio.to_thread(submit, gmail, "full1@gmail.com"))[0] == 452
    code, text = await asyncio.to_thread(submit, generic, "a@b.example")
    assert code == 451
    assert b"try again in" in text


async def test_commands_change_a_running_provider(simulator: Simulator, tmp_path: Path) -> None:
    async def command(**order: Any) -> dict[str, Any]:
        return await asyncio.to_thread(send_command, tmp_path, order)

    gmail = port(simulator, "gmail.com")
    await command(do="set", provider="gmail", behaviour={"outage": 1.0, "outage_hosts": [0]})
    with pytest.raises(smtplib.SMTPConnectError):
        await asyncio.to_thread(submit, gmail, "x@gmail.com")
    second = port(simulator, "gmail.com", 1)
    assert (await asyncio.to_thread(submit, second, "x@gmail.com"))[0] == 250
    await command(do="reset", provider="gmail")
    assert (await asyncio.to_thread(submit, gmail, "x@gmail.com"))[0] == 250
    assert (await command(do="status"))["gmail"]["received"] == 2
    with pytest.raises(SimulatorError, match="no provider 'nobody'"):
        await command(do="reset", provider="nobody")
    with pytest.raises(SimulatorError, match="behaviour refused"):
        await command(do="set", provider="gmail", behaviour={"outige": 1})


async def test_rate_limit_per_client(simulator: Simulator, tmp_path: Path) -> None:
    simulator.providers["gmail"].behaviour.rate = 2
    gmail = port(simulator, "gmail.com")
    for _ in range(2):
        assert (await asyncio.to_thread(submit, gmail, "x@gmail.com"))[0] == 250
    refusal = await asyncio.to_thread(mail_only, gmail)
    assert refusal[0] == 421


async def test_reset_after_the_dot_leaves_a_record(simulator: Simulator, tmp_path: Path) -> None:
    simulator.providers["gmail"].behaviour.after_dot = "reset"
    with pytest.raises(smtplib.SMTPServerDisconnected):
        await asyncio.to_thread(submit, port(simulator, "gmail.com"), "x@gmail.com")
    assert len(list(read(tmp_path / "witness.jsonl"))) == 1


def submit_tls(where: int, recipient: str) -> tuple[int, bytes]:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with smtplib.SMTP("127.0.0.1", where, timeout=10) as client:
        client.ehlo("test")
        client.starttls(context=context)
        client.ehlo("test")
        assert not client.has_extn("starttls")
        client.mail("a@sender.test")
        client.rcpt(recipient)
        return client.data(MAIL)


async def test_starttls(simulator: Simulator, tmp_path: Path) -> None:
    code, _ = await asyncio.to_thread(submit_tls, port(simulator, "gmail.com"), "x@gmail.com")
    assert code == 250
    assert len(list(read(tmp_path / "witness.jsonl"))) == 1
