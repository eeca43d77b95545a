"""MTA-STS (RFC 8461) in a zone, with a policy host and MX hosts of a test CA, all on loopback."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mailweir.contracts.policy import Source, Tls
from mailweir.plumbing.settings import Settings
from tests.services.authority import DAY, Authority
from tests.services.dns import Dns, Records
from tests.unit.delivery.scripted import Scripted, offer
from tests.unit.delivery.sending import Sender
from workers.delivery.destinations import Destinations, DnsTrouble
from workers.delivery.dns import Resolver
from workers.delivery.mta_sts import AGAIN, REFRESH, MtaSts
from workers.delivery.types import Destination, Hop, Result

ENFORCE = (
    "version: STSv1\r\nmode: enforce\r\nmx: mx1.sts.test\r\nmx: *.pool.test\r\nmax_age: 604800\r\n"
)
TEXT = "text/plain; charset=utf-8"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


class PolicyHost:
    """An HTTPS server with one answer, changed at will."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.body: bytes = ENFORCE.encode()
        self.status, self.head = "200 OK", f"Content-Type: {TEXT}"
        self.silent = False
        self.asked: list[bytes] = []
        self._free = asyncio.Event()

    async def __aenter__(self) -> PolicyHost:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._free.set()
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            if self.silent:
                await self._free.wait()
            head = (
                f"HTTP/1.1 {self.status}\r\n{self.head}\r\nContent-Length: {len(self.body)}\r\n\r\n"
            )
            writer.write(head.encode() + self.body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client broke off: the test looks at what it made of that
        finally:
            writer.close()


class Rig:
    """Zone, policy host, destinations; ``now`` is the clock of the policy cache."""

    def __init__(self, dns: Dns, host: PolicyHost, destinations: Destinations, sts: MtaSts) -> None:
        self.dns, self.host, self.destinations, self.sts = dns, host, destinations, sts
        self.now: Callable[[float], None]

    async def resolve(self, domain: str = "sts.test") -> Destination:
        return await self.destinations.resolve(domain)


@asynccontextmanager
async def rig(
    ca: Authority,
    monkeypatch: pytest.MonkeyPatch,
    *,
    mx: list[str] | None = None,
    names: tuple[str, ...] = ("mta-sts.sts.test",),
    age: Any = 30 * DAY,
    **smtp: Any,
) -> AsyncIterator[Rig]:
    records: Records = {
        ("sts.test", "MX"): (600, mx or ["10 mx1.sts.test."]),
        ("_mta-sts.sts.test", "TXT"): (600, ['"v=STSv1; id=20261101T000000;"']),
        ("mta-sts.sts.test", "A"): (600, ["127.0.0.1"]),
        ("mx1.sts.test", "A"): (600, ["127.0.0.1"]),
        ("evil.test", "A"): (600, ["127.0.0.1"]),
        ("a.pool.test", "A"): (600, ["127.0.0.1"]),
        ("plain.test", "MX"): (600, ["10 mx1.sts.test."]),
    }
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.file))  # the system's trust store, for this test
    clock = [1000.0]
    async with Dns(records) as dns, PolicyHost(ca.issue(*names, age=age).context()) as host:
        settings = Settings.model_validate(
            {"dns": {"nameservers": [dns.address],
                     "min_ttl": 0, "max_ttl": 0, "negative_ttl": 0},
             "smtp": {"allow_private": True, **smtp}}
        )  # fmt: skip
        resolver = Resolver(settings.dns)
        sts = MtaSts(
            resolver,
            allow_private=settings.smtp.allow_private,
            port=host.port,
            clock=lambda: clock[0],
        )
        made = Rig(dns, host, Destinations(settings, resolver=resolver, sts=sts), sts)
        made.now = lambda later: clock.__setitem__(0, clock[0] + later)
        try:
            yield made
        finally:
            await made.destinations.close()


def hosts(destination: Destination) -> list[tuple[str, bool]]:
    return [(hop.host, hop.verified) for hop in destination.hosts]


async def test_enforced_hosts_are_marked_and_others_left_out(
    ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    mx = ["5 evil.test.", "10 mx1.sts.test.", "20 a.pool.test."]
    async with rig(ca, monkeypatch, mx=mx) as made:
        assert hosts(await made.resolve()) == [("mx1.sts.test", True), ("a.pool.test", True)]
        request = made.host.asked[0]
        assert request.startswith(b"GET /.well-known/mta-sts.txt HTTP/1.1\r\n")
        assert b"Host: mta-sts.sts.test\r\n" in request
        plain = await made.resolve("plain.test")
        assert hosts(plain) == [("mx1.sts.test", False)], "another domain of the same host"
        assert plain.demands != (await made.resolve()).demands
        await made.resolve()
        assert len(made.host.asked) == 1, "a kept policy was asked for again"


async def test_no_host_left_is_temporary(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(ca, monkeypatch, mx=["5 evil.test."]) as made:
        with pytest.raises(DnsTrouble, match="MTA-STS"):
            await made.resolve()


async def test_switched_off(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(ca, monkeypatch, mta_sts=False) as made:
        assert hosts(await made.resolve()) == [("mx1.sts.test", False)]
        assert not made.host.asked


@pytest.mark.parametrize("mode", ["testing", "none"])
async def test_testing_and_none_change_nothing(
    ca: Authority, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    async with rig(ca, monkeypatch, mx=["5 evil.test."]) as made:
        made.host.body = ENFORCE.replace("enforce", mode).encode()
        assert hosts(await made.resolve()) == [("evil.test", False)]


def _redirect(host: PolicyHost) -> None:
    host.status = "302 Found"
    host.head += f"\r\nLocation: https://mta-sts.sts.test:{host.port}/other"


def _html(host: PolicyHost) -> None:
    host.head = "Content-Type: text/html"


def _huge(host: PolicyHost) -> None:
    host.body += b"x: y\r\n" * 11_000


def _missing(host: PolicyHost) -> None:
    host.status = "404 Not Found"


def _zipped(host: PolicyHost) -> None:
    host.head += "\r\nContent-Encoding: gzip"


def _broken(host: PolicyHost) -> None:
    host.body = b"mode: enforce\r\n"


BAD = [_redirect, _html, _huge, _missing, _zipped, _broken]


@pytest.mark.parametrize("spoil", BAD)
async def test_what_is_no_policy_counts_as_none_and_is_asked_rarely(
    ca: Authority, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[PolicyHost], None]
) -> None:
    async with rig(ca, monkeypatch) as made:
        spoil(made.host)
        for _ in range(3):
            assert hosts(await made.resolve()) == [("mx1.sts.test", False)]
        assert len(made.host.asked) == 1
        made.host.status, made.host.head = "200 OK", f"Content-Type: {TEXT}"
        made.host.body = ENFORCE.encode()
        made.now(AGAIN + 1)
        assert hosts(await made.resolve()) == [("mx1.sts.test", True)]


@pytest.mark.parametrize(
    ("names", "age"), [(("other.test",), 30 * DAY), (("mta-sts.sts.test",), -DAY)]
)
async def test_a_policy_host_with_a_wrong_certificate_gives_no_policy(
    ca: Authority, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], age: Any
) -> None:
    async with rig(ca, monkeypatch, names=names, age=age) as made:
        assert hosts(await made.resolve()) == [("mx1.sts.test", False)]
        assert not made.host.asked


async def test_private_policy_hosts_are_not_asked(
    ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(ca, monkeypatch, allow_private=False) as made:
        assert hosts(await made.resolve()) == [("mx1.sts.test", False)]
        assert not made.host.asked


async def test_a_kept_policy_outlives_record_and_policy_host(
    ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(ca, monkeypatch) as made:
        record = made.dns.records[("_mta-sts.sts.test", "TXT")]
        assert hosts(await made.resolve()) == [("mx1.sts.test", True)]
        for hidden in ("SERVFAIL", None):
            if hidden:
                made.dns.records[("_mta-sts.sts.test", "TXT")] = hidden
            else:
                del made.dns.records[("_mta-sts.sts.test", "TXT")]
            assert hosts(await made.resolve()) == [("mx1.sts.test", True)]
        made.dns.records[("_mta-sts.sts.test", "TXT")] = (600, ['"v=STSv1; id=2;"'])
        made.host.status = "500 Broken"
        assert hosts(await made.resolve()) == [("mx1.sts.test", True)], "new id, no new policy"
        made.dns.records[("_mta-sts.sts.test", "TXT")] = record
        made.now(604_800)
        assert hosts(await made.resolve()) == [("mx1.sts.test", False)], "too old to hold"


async def test_a_new_id_brings_a_new_policy_at_once(
    ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(ca, monkeypatch) as made:
        await made.resolve()
        made.dns.records[("_mta-sts.sts.test", "TXT")] = (600, ['"v=STSv1; id=2;"'])
        made.host.body = ENFORCE.replace("enforce", "none").encode()
        assert hosts(await made.resolve()) == [("mx1.sts.test", False)]


async def test_an_aging_policy_is_refreshed_behind_the_mail(
    ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(ca, monkeypatch) as made:
        await made.resolve()
        made.now(REFRESH)
        made.host.body = ENFORCE.replace("enforce", "testing").encode()
        assert hosts(await made.resolve()) == [("mx1.sts.test", True)], "the mail waits for nothing"
        await asyncio.gather(*made.sts._flights.values())
        assert hosts(await made.resolve()) == [("mx1.sts.test", False)]
        assert len(made.host.asked) == 2


async def test_a_hundred_askers_cause_one_fetch(
    ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(ca, monkeypatch) as made:
        found = await asyncio.gather(*(made.resolve() for _ in range(100)))
        assert {tuple(hosts(one)) for one in found} == {(("mx1.sts.test", True),)}
        assert len(made.host.asked) == 1


async def send(ca: Authority, destination: Destination, port: int, tls: str) -> Result:
    source = Source("s1", tls=Tls(tls, str(ca.file)))
    async with Sender(source) as sender:
        hops = [_at(hop, port) for hop in destination.hosts]
        return await sender.one(hops, tls=tls)


def _at(hop: Hop, port: int) -> Hop:
    return replace(hop, port=port, trusted=True)


STARTTLS = offer("PIPELINING", "SIZE 20000000", "8BITMIME", "STARTTLS")


@pytest.mark.parametrize("tls", ["none", "opportunistic", "required"])
async def test_never_plain_text_and_never_a_wrong_certificate_under_enforce(
    ca: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tls: str
) -> None:
    good = ca.issue("mx1.sts.test").context()
    wrong = ca.issue("mx2.sts.test").context()
    unknown = Authority(tmp_path, "nobody").issue("mx1.sts.test").context()
    old = ca.issue("mx1.sts.test", age=-DAY).context()
    async with rig(ca, monkeypatch) as made:
        destination = await made.resolve()
        async with Scripted({"ehlo": STARTTLS}, tls=good) as server:
            result = await send(ca, destination, server.port, tls)
            assert result.accepted
            assert result.tls
        for context in (wrong, unknown, old):
            async with Scripted({"ehlo": STARTTLS}, tls=context) as server:
                result = await send(ca, destination, server.port, tls)
                assert (result.stage, result.error) == ("starttls", "tls"), result
                assert not server.mails
                assert not any(c.startswith("MAIL") for c in server.commands)
        async with Scripted() as server:  # STARTTLS stripped on the way
            result = await send(ca, destination, server.port, tls)
            assert (result.stage, result.error) == ("starttls", "tls")
            assert "MTA-STS" in result.reply
            assert not any(c.startswith("MAIL") for c in server.commands)


async def test_sessions_of_a_domain_without_policy_are_not_shared(
    ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle session opened unverified must not carry the mail of a domain that demands more."""
    async with rig(ca, monkeypatch) as made:
        strict, plain = await made.resolve(), await made.resolve("plain.test")
        context = ca.issue("mx2.sts.test").context()
        source = Source("s1", tls=Tls("opportunistic", str(ca.file)))
        async with Scripted({"ehlo": STARTTLS}, tls=context) as server, Sender(source) as sender:
            first = await sender.one([_at(hop, server.port) for hop in plain.hosts])
            second = await sender.one([_at(hop, server.port) for hop in strict.hosts])
            assert first.accepted
            assert (second.stage, second.error) == ("starttls", "tls")
            assert len(server.mails) == 1
