"""DANE for SMTP (RFC 7672): a signed zone on loopback, real TLS sessions, records right and wrong."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mailweir.plumbing.settings import Settings
from tests.services.authority import DAY, Authority, Identity
from tests.services.dns import Dns, Records
from tests.unit.delivery.scripted import Scripted, offer
from tests.unit.delivery.sending import Sender
from workers.delivery import dane
from workers.delivery.destinations import Destinations, DnsTrouble
from workers.delivery.mta_sts import MtaSts
from workers.delivery.sts_policy import StsPolicy, parse
from workers.delivery.types import Destination, Result, Tlsa, TlsMode

STARTTLS = offer("PIPELINING", "SIZE 20000000", "8BITMIME", "STARTTLS")
HOST = "mx1.dane.test"
ZEROS = "0" * 64


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "dane root")


class Enforced(MtaSts):
    """A domain whose MTA-STS policy is known already."""

    async def policy(self, domain: str) -> StsPolicy | None:
        return parse("version: STSv1\nmode: enforce\nmx: *.dane.test\nmax_age: 60\n")


@asynccontextmanager
async def zone(
    *tlsa: str,
    signed: frozenset[str] = frozenset({"dane.test"}),
    sts: bool = False,
    more: Records | None = None,
    dns: dict[str, Any] | None = None,
    **smtp: Any,
) -> AsyncIterator[tuple[Destinations, Dns]]:
    records: Records = {
        ("dane.test", "MX"): (600, [f"10 {HOST}."]),
        (HOST, "A"): (600, ["127.0.0.1"]),
        **({(f"_25._tcp.{HOST}", "TLSA"): (600, list(tlsa))} if tlsa else {}),
        **(more or {}),
    }
    async with Dns(records, signed=set(signed)) as server:
        settings = Settings.model_validate(
            {"dns": {"nameservers": [server.address], **(dns or {})},
             "smtp": {"dane": True, "mta_sts": sts, **smtp}}
        )  # fmt: skip
        destinations = Destinations(settings)
        if sts:
            destinations = Destinations(settings, sts=Enforced(destinations._resolver))
        yield destinations, server


async def send(destination: Destination, port: int, tls: str = "opportunistic") -> Result:
    async with Sender() as sender:
        hops = [replace(hop, port=port, trusted=True) for hop in destination.hosts]
        return await sender.one(hops, tls=tls)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha512(data: bytes) -> str:
    return hashlib.sha512(data).hexdigest()


def key_of(ca: Authority) -> bytes:
    return ca.root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def root_of(ca: Authority) -> bytes:
    return ca.root.public_bytes(Encoding.DER)


Make = Callable[[Authority, Identity], str]
GOOD: dict[str, Make] = {
    "3 0 0": lambda ca, it: f"3 0 0 {it.der.hex()}",
    "3 0 1": lambda ca, it: f"3 0 1 {sha256(it.der)}",
    "3 0 2": lambda ca, it: f"3 0 2 {sha512(it.der)}",
    "3 1 0": lambda ca, it: f"3 1 0 {it.public_key.hex()}",
    "3 1 1": lambda ca, it: f"3 1 1 {sha256(it.public_key)}",
    "3 1 2": lambda ca, it: f"3 1 2 {sha512(it.public_key)}",
    "2 0 0": lambda ca, it: f"2 0 0 {root_of(ca).hex()}",
    "2 0 1": lambda ca, it: f"2 0 1 {sha256(root_of(ca))}",
    "2 1 1": lambda ca, it: f"2 1 1 {sha256(key_of(ca))}",
    "2 1 2": lambda ca, it: f"2 1 2 {sha512(key_of(ca))}",
}


@pytest.mark.parametrize("tls", ["none", "verified"])
@pytest.mark.parametrize("kind", GOOD)
async def test_a_record_that_matches(ca: Authority, kind: str, tls: str) -> None:
    it = ca.issue(HOST)
    async with (
        zone(f"3 1 1 {ZEROS}", GOOD[kind](ca, it)) as (destinations, _),  # one of many is enough
        Scripted({"ehlo": STARTTLS}, tls=it.context()) as server,
    ):
        result = await send(await destinations.resolve("dane.test"), server.port, tls)
    assert result.accepted, result
    assert result.tls


@pytest.mark.parametrize("kind", GOOD)
async def test_the_same_record_and_another_certificate(
    ca: Authority, tmp_path: Path, kind: str
) -> None:
    it, other = ca.issue(HOST), Authority(tmp_path, "dane root").issue(HOST)
    async with (
        zone(GOOD[kind](ca, it)) as (destinations, _),
        Scripted({"ehlo": STARTTLS}, tls=other.context()) as server,
    ):
        result = await send(await destinations.resolve("dane.test"), server.port)
    assert (result.stage, result.error) == ("starttls", "tls")
    assert "TLSA" in result.reply
    assert not any(c.startswith("MAIL") for c in server.commands)


async def test_usage_3_minds_neither_name_nor_date(ca: Authority) -> None:  # RFC 7672 3.1.1
    it = ca.issue("elsewhere.test", age=-DAY)
    async with (
        zone(GOOD["3 1 1"](ca, it)) as (destinations, _),
        Scripted({"ehlo": STARTTLS}, tls=it.context()) as server,
    ):
        assert (await send(await destinations.resolve("dane.test"), server.port)).accepted


@pytest.mark.parametrize(
    "it",
    [
        lambda ca: ca.issue("elsewhere.test"),
        lambda ca: ca.issue(HOST, age=-DAY),
        lambda ca: ca.issue(HOST, with_root=False),  # 3.1.2: the server must send its anchor
    ],
    ids=["name", "date", "anchor not sent"],
)
async def test_usage_2_minds_name_date_and_chain(
    ca: Authority, it: Callable[[Authority], Identity]
) -> None:
    identity = it(ca)
    async with (
        zone(GOOD["2 1 1"](ca, identity)) as (destinations, _),
        Scripted({"ehlo": STARTTLS}, tls=identity.context()) as server,
    ):
        result = await send(await destinations.resolve("dane.test"), server.port)
    assert (result.stage, result.error) == ("starttls", "tls")


async def test_a_whole_anchor_in_the_record_need_not_be_sent(ca: Authority) -> None:
    it = ca.issue(HOST, with_root=False)
    async with (
        zone(GOOD["2 0 0"](ca, it)) as (destinations, _),
        Scripted({"ehlo": STARTTLS}, tls=it.context()) as server,
    ):
        assert (await send(await destinations.resolve("dane.test"), server.port)).accepted


async def test_starttls_withdrawn_is_no_way_out(ca: Authority) -> None:
    async with (
        zone(f"3 1 1 {ZEROS}") as (destinations, _),
        Scripted() as server,
    ):
        result = await send(await destinations.resolve("dane.test"), server.port)
    assert (result.stage, result.error) == ("starttls", "tls")
    assert not server.mails


async def test_unusable_records_still_demand_encryption(ca: Authority) -> None:  # RFC 7672 2.2
    unusable = (f"1 1 1 {ZEROS}", f"0 0 1 {ZEROS}", f"3 9 1 {ZEROS}")
    async with zone(*unusable) as (destinations, _):
        destination = await destinations.resolve("dane.test")
        assert [hop.tlsa for hop in destination.hosts] == [()]
        assert destination.hosts[0].tls(TlsMode.OPPORTUNISTIC) is TlsMode.REQUIRED
        async with Scripted() as server:
            result = await send(destination, server.port)
            assert (result.stage, result.error) == ("starttls", "tls")
        async with Scripted({"ehlo": STARTTLS}, tls=ca.issue("x.test").context()) as server:
            assert (await send(destination, server.port)).accepted


@pytest.mark.parametrize(
    "options",
    [
        {"signed": frozenset()},
        {"signed": frozenset({HOST})},  # the MX record itself is not vouched for
        {"dane": False},
    ],
    ids=["unsigned zone", "unsigned MX", "switched off"],
)
async def test_without_dnssec_or_switched_off_no_record_counts(options: dict[str, Any]) -> None:
    async with zone(f"3 1 1 {ZEROS}", **options) as (destinations, server):
        destination = await destinations.resolve("dane.test")
        assert [hop.tlsa for hop in destination.hosts] == [None]
        if "dane" in options or not options["signed"]:
            assert not any(asked.startswith("TLSA") for asked in server.asked)


async def test_no_record_at_all(ca: Authority) -> None:
    async with zone() as (destinations, _):
        assert [h.tlsa for h in (await destinations.resolve("dane.test")).hosts] == [None]


@pytest.mark.parametrize("name", ["SERVFAIL", "silent"])
async def test_a_lookup_that_fails_leaves_the_host_out(name: str) -> None:
    """RFC 7672 2.1.2: whoever suppresses the records must not win plain text."""
    if name == "SERVFAIL":
        more: Records = {(f"_25._tcp.{HOST}", "TLSA"): "SERVFAIL"}
        async with zone(more=more) as (destinations, _):
            with pytest.raises(DnsTrouble, match="TLSA"):
                await destinations.resolve("dane.test")
        more |= {
            ("dane.test", "MX"): (600, [f"10 {HOST}.", "20 mx2.dane.test."]),
            ("mx2.dane.test", "A"): (600, ["127.0.0.2"]),
        }
        async with zone(more=more) as (destinations, _):
            found = await destinations.resolve("dane.test")
            assert [hop.host for hop in found.hosts] == ["mx2.dane.test"]
        return
    async with zone(dns={"timeout": 0.3, "lifetime": 0.5}) as (destinations, server):
        server.silent = frozenset({f"_25._tcp.{HOST}"})
        with pytest.raises(DnsTrouble, match="TLSA"):
            await destinations.resolve("dane.test")


async def test_dane_comes_before_mta_sts(ca: Authority) -> None:
    """RFC 8461 2: a certificate no CA knows is right where TLSA says so, and a failing TLSA is not
    mended by MTA-STS."""
    it = ca.issue(HOST)
    for record, good in ((GOOD["3 1 1"](ca, it), True), (f"3 1 1 {ZEROS}", False)):
        async with (
            zone(record, sts=True) as (destinations, _),
            Scripted({"ehlo": STARTTLS}, tls=it.context()) as server,
        ):
            destination = await destinations.resolve("dane.test")
            assert [hop.verified for hop in destination.hosts] == [False]
            assert (await send(destination, server.port)).accepted is good
    async with zone(sts=True) as (destinations, _):
        assert [h.verified for h in (await destinations.resolve("dane.test")).hosts] == [True]


def test_the_chain_as_sent_is_still_reachable() -> None:
    """``dane.sent_chain`` uses what Python kept private before 3.13."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname=HOST)
    assert dane.sent_chain(session) == []


def test_usable() -> None:
    digest = bytes(32)
    assert dane.usable(Tlsa(3, 1, 1, digest))
    assert not dane.usable(Tlsa(3, 1, 2, digest))
    assert not dane.usable(Tlsa(3, 1, 0, b""))
    assert not dane.usable(Tlsa(1, 1, 1, digest))
