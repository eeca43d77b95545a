"""Connections: reused, limited, never shared over another identity, closed with QUIT; TLS attacks."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mailweir.contracts.policy import Auth, Provider, Source
from tests.services.postfix import make_certificate
from tests.unit.delivery.scripted import Act, Answer, Scripted, offer
from tests.unit.delivery.sending import PATIENCE, Sender, hop, mail, mails
from workers.delivery.connection import is_private
from workers.delivery.owner import PlainOwner
from workers.delivery.proxy import v2_header
from workers.delivery.types import Destination, Envelope, Hop, Result
from workers.patience import Patience

Answers = dict[str, Answer | list[Answer]]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder: Path = tmp_path_factory.mktemp("tls")
    make_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


# --- reuse and limits -----------------------------------------------------------------------
async def test_a_connection_serves_many_calls_and_closes_with_quit() -> None:
    async with Scripted() as server:
        async with Sender() as sender:
            for i in range(5):
                assert (await sender.send(server.port, [mail(i)]))[0].accepted
            assert server.connections == 1
            assert sender.open == {("s1", "d.test"): 1}
        assert server.commands[-1] == "QUIT"


async def test_messages_per_connection_and_connections_are_limits() -> None:
    provider = Provider("p", connections=3, per_connection=4)
    async with Scripted() as server, Sender(provider=provider) as sender:
        first, second = await asyncio.gather(
            sender.send(server.port, [mail(i) for i in range(40)], connections=10),
            sender.send(server.port, [mail(i) for i in range(100, 140)], connections=10),
        )
    assert sum(r.accepted for r in first + second) == 80
    assert sender.peak <= 3
    assert server.peak <= 3
    counts: dict[int, int] = {}
    for got in server.mails:
        counts[got.connection] = counts.get(got.connection, 0) + 1
    assert max(counts.values()) == 4


async def test_of_connections_used_up_at_once_one_waits_for_a_new_one() -> None:
    """None is sent back for want of a connection while there is patience left."""
    provider = Provider("p", connections=2, per_connection=1)
    both = asyncio.Barrier(2)

    async def together(count: int) -> None:
        if count <= 2:
            async with asyncio.timeout(PATIENCE):
                await both.wait()

    async with Scripted(before_dot=together) as server, Sender(provider=provider) as sender:
        results = await sender.send(
            server.port, mails(12), connections=2, patience=Patience(PATIENCE)
        )
        assert server.connections == 12
    assert sum(r.accepted for r in results) == 12


async def test_a_dead_host_costs_no_place_among_those_who_wait() -> None:
    provider = Provider("p", connections=1, idle=0.0)
    async with Scripted() as closed:
        dead = hop(closed.port, "mx1.d.test")
    async with Scripted() as server, Sender(provider=provider) as sender:
        first, second = await asyncio.gather(
            sender.send([dead, hop(server.port)], [mail(1)]), sender.send(server.port, [mail(2)])
        )
    assert [result.accepted for result in first + second] == [True, True]
    assert [got.rcpt for got in server.mails] == ["user1@d.test", "user2@d.test"]


async def test_idle_connections_are_closed() -> None:
    provider = Provider("p", idle=0.05)
    async with Scripted() as server, Sender(provider=provider) as sender:
        await sender.send(server.port, mails(1))
        async with asyncio.timeout(PATIENCE):
            while any(sender.open.values()):
                await asyncio.sleep(0.01)
        assert server.commands[-1] == "QUIT"


async def test_a_connection_closed_while_idle_costs_no_mail() -> None:
    async with Scripted({"mail": ["250 ok", Act.CLOSE, "250 ok"]}) as server, Sender() as sender:
        assert (await sender.send(server.port, [mail(1)]))[0].accepted
        assert (await sender.send(server.port, [mail(2)]))[0].accepted
    assert server.connections == 2


async def test_another_host_of_the_site_takes_the_place_of_an_idle_one() -> None:
    provider = Provider("p", connections=1)
    async with Scripted() as one, Scripted() as two, Sender(provider=provider) as sender:
        for server in (one, two, one):
            async with asyncio.timeout(PATIENCE):
                assert (await sender.send(server.port, mails(1)))[0].accepted
        assert sender.peak == 1
    assert (one.connections, two.connections) == (2, 1)


async def test_a_moved_job_says_so_and_shows_both_conversations() -> None:
    async with Scripted({"banner": "554 no"}) as bad, Scripted() as good, Sender() as sender:
        moved = await sender.one([hop(bad.port, "mx1.test"), hop(good.port, "mx2.test")])
        stayed = await sender.one([hop(good.port, "mx2.test")])
        lost = await sender.one([hop(bad.port, "mx1.test"), hop(bad.port, "mx3.test")])
    assert (moved.layer, moved.host) == ("connection", f"mx2.test:{good.port}")
    assert stayed.layer is None
    assert lost.conversation is not None
    assert lost.conversation.count("554 no") == 4  # each host's banner and our remark about it
    assert "mx1.test" in lost.conversation


async def test_sources_logins_and_policies_do_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P1", "one")
    answers: Answers = {"ehlo": offer("PIPELINING", "AUTH PLAIN")}
    async with Scripted(answers) as server, Sender() as sender:
        plain = Source("s1")
        login = Source("s1", auth=Auth("u1", "env:P1"))
        other_login = Source("s1", auth=Auth("u2", "env:P1"))
        for number, source in enumerate([plain, login, other_login, Source("s2")], start=1):
            (result,) = await sender.send(server.port, [mail(number)], source=source)
            assert result.accepted
            assert server.connections == number
        await sender.send(server.port, [mail(9)], source=plain, tls="none")
        assert server.connections == 5
        await sender.send(server.port, [mail(10)], source=login)
        assert server.connections == 5


async def test_prewarm_opens_connections_ahead() -> None:
    async with Scripted() as server, Sender() as sender:
        there = await sender.transport.prewarm(
            sender.source,
            Destination("d.test", "p", (hop(server.port),)),
            provider=sender.provider,
            tls="opportunistic",
            count=3,
        )
        assert there == server.connections == 3
        assert all(r.accepted for r in await sender.send(server.port, mails(9), connections=3))
        assert server.connections == 3
        assert sender.transport.open_connections() == {("s1", "d.test"): 3}


async def test_source_address_and_ehlo_name() -> None:
    source = Source("s1", ip="127.0.0.9", ehlo="out.acme.test")
    async with Scripted() as server, Sender(source) as sender:
        assert (await sender.one(server.port)).accepted
    assert server.peers == ["127.0.0.9"]
    assert server.commands[0] == "EHLO out.acme.test"


async def test_other_address_family_is_not_tried() -> None:
    source = Source("s1", ip="127.0.0.9")
    async with Sender(source) as sender:
        result = await sender.one([Hop("mx.test", 25, "2001:db8::1")])
    assert (result.stage, result.error) == ("connect", "unreachable")


async def test_private_addresses_are_refused_unless_allowed() -> None:  # P27
    async with Scripted() as server:
        wild = [Hop("mx.evil.test", server.port, "127.0.0.1")]
        async with Sender() as sender:
            refused = await sender.one(wild)
        async with Sender(allow_private=True) as sender:
            assert (await sender.one(wild)).accepted
    assert (refused.stage, refused.error) == ("connect", "private")
    for address in ("10.1.2.3", "169.254.169.254", "::1", "::ffff:127.0.0.1", "100.64.0.1"):
        assert is_private(address)
    assert not is_private("8.8.8.8")


# --- what workers ask for -----------------------------------------------------------------------
async def test_before_body_skips_without_a_result_and_before_rcpt() -> None:
    async with Scripted() as server, Sender() as sender:

        async def odd(envelope: Envelope) -> bool:
            assert f"RCPT TO:<{envelope.rcpt}>" not in server.commands
            await asyncio.sleep(0)
            return envelope.job_id % 2 == 1

        results = await sender.send(server.port, mails(9), before_body=odd)
    assert sorted(r.job_id for r in results) == [1, 3, 5, 7, 9]
    assert len(server.mails) == 5


async def test_a_slow_next_envelope_does_not_delay_the_result_before_it() -> None:
    settled = asyncio.Event()
    async with Scripted() as server, Sender() as sender:

        async def wait(envelope: Envelope) -> bool:
            if envelope.job_id == 2:
                async with asyncio.timeout(PATIENCE):
                    await settled.wait()  # set by the first result: would hang were it held back
            return True

        def heard(result: Result) -> None:
            settled.set()

        await sender.transport.deliver(
            sender.source,
            Destination("d.test", "p", (hop(server.port),)),
            mails(2),
            provider=sender.provider,
            tls="none",
            owner=PlainOwner(heard, wait),
            max_connections=1,
        )
    assert len(server.mails) == 2


async def test_cancelled_after_the_dot_is_uncertain() -> None:
    results: list[Result] = []
    async with Scripted({"dot": Act.SILENCE}) as server, Sender() as sender:
        task = asyncio.create_task(
            sender.transport.deliver(
                sender.source,
                Destination("d.test", "p", (hop(server.port),)),
                mails(1),
                provider=sender.provider,
                tls="none",
                owner=PlainOwner(results.append),
                max_connections=1,
            )
        )
        async with asyncio.timeout(PATIENCE):
            while not server.mails:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [r.uncertain for r in results] == [True]


@pytest.mark.parametrize(
    "offered", [("PIPELINING",), ("SIZE 20000000",), ("CHUNKING",), ("PIPELINING", "CHUNKING")]
)
async def test_what_may_not_go_any_more_at_the_last_moment_costs_its_session_and_no_other_mail(
    offered: tuple[str, ...],
) -> None:
    async with Scripted({"ehlo": offer(*offered)}) as server, Sender() as sender:
        results = await sender.send(server.port, mails(4), still=lambda e: e.job_id != 2)
    assert [r.job_id for r in results if r.accepted] == [1, 3, 4]
    assert len(results) == 3
    assert [got.rcpt for got in server.mails] == [f"user{n}@d.test" for n in (1, 3, 4)]
    assert server.connections == 2


async def test_a_sick_host_loses_the_job_to_the_next_one_and_greylisting_does_not() -> None:
    sick = {"rcpt": "451 4.3.0 internal error", "data": "503 no rcpt"}
    grey = {"rcpt": "450 4.2.0 Greylisted, try again in 300 seconds", "data": "503 no rcpt"}
    for answers, moved in ((sick, True), (grey, False)):
        async with Scripted(dict(answers)) as first, Scripted() as second, Sender() as sender:
            results = await sender.send([hop(first.port, "mx1.test"), hop(second.port)], mails(3))
        assert len(results) == 3
        assert all(r.accepted == moved for r in results)
        assert len(second.mails) == (3 if moved else 0)


# --- TLS and AUTH ---------------------------------------------------------------------------
STARTTLS: Answers = {"ehlo": offer("PIPELINING", "STARTTLS")}


async def test_plain_250_to_starttls_is_no_tls() -> None:  # P3
    async with Scripted({**STARTTLS, "starttls": "250 ok"}) as server, Sender() as sender:
        result = await sender.one(server.port)
    assert (result.stage, result.error) == ("starttls", "malformed")
    assert not server.mails


async def test_injected_bytes_after_starttls_close_the_session(tls: ssl.SSLContext) -> None:
    evil = b"220 go\r\n250 fake ehlo\r\n"
    async with Scripted({**STARTTLS, "starttls": evil}, tls=tls) as server, Sender() as sender:
        result = await sender.one(server.port)
    assert (result.stage, result.error) == ("starttls", "malformed")


@pytest.mark.parametrize(("mode", "accepted"), [("opportunistic", True), ("required", False)])
async def test_starttls_refused_or_withdrawn(mode: str, accepted: bool) -> None:
    async with (
        Scripted({**STARTTLS, "starttls": "454 4.7.0 not now"}) as server,
        Sender() as sender,
    ):
        result = await sender.one(server.port, tls=mode)
    assert result.accepted == accepted
    assert not result.tls
    async with Scripted() as never_offered, Sender() as sender:
        result = await sender.one(never_offered.port, tls=mode)
    assert result.accepted == accepted
    if not accepted:
        assert (result.stage, result.error) == ("starttls", "tls")


async def test_a_broken_handshake_falls_back_only_when_opportunistic() -> None:
    broken = {**STARTTLS, "starttls": b"220 go\r\n"}
    async with Scripted(broken) as server, Sender() as sender:  # no context: hangs up
        loose = await sender.one(server.port, tls="opportunistic")
        strict = await sender.one(server.port, tls="required")
    assert loose.accepted
    assert not loose.tls
    assert (strict.stage, strict.error) == ("starttls", "tls")


async def test_tls_from_the_first_byte(tls: ssl.SSLContext) -> None:
    async with (
        Scripted(tls=tls, implicit_tls=True) as server,
        Scripted() as plain,
        Sender() as sender,
    ):
        result = await sender.one([Hop("localhost", server.port, implicit_tls=True, trusted=True)])
        failed = await sender.one([Hop("localhost", plain.port, implicit_tls=True, trusted=True)])
    assert result.accepted
    assert result.tls
    assert (failed.stage, failed.error) == ("starttls", "tls")
    assert plain.connections == 1, "no TLS there: not asked in plain text"


async def test_no_readable_password_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P1", "secret-canary")
    monkeypatch.setattr("ipaddress.IPv4Address.is_loopback", property(lambda self: False))
    source = Source("r", kind="relay", host="r.test", auth=Auth("u", "env:P1"))
    async with Scripted({"ehlo": offer("AUTH PLAIN LOGIN")}) as server, Sender(source) as sender:
        result = await sender.one(server.port, tls="none")
    assert (result.stage, result.error) == ("auth", "auth")
    assert not [c for c in server.commands if c.startswith("AUTH")]
    assert "canary" not in repr(result)


async def test_xoauth2_and_a_missing_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source("r", kind="relay", auth=Auth("u@x.test", "env:TOKEN_UNSET", "xoauth2"))
    answers: Answers = {"ehlo": offer("AUTH XOAUTH2")}
    async with Scripted(answers) as server, Sender(source) as sender:
        missing = await sender.one(server.port)
        monkeypatch.setenv("TOKEN_UNSET", "tok")
        there = await sender.one(server.port)
    assert (missing.stage, missing.error) == ("auth", "auth")
    assert "env:TOKEN_UNSET" in missing.reply
    assert there.accepted


# --- proxies --------------------------------------------------------------------------------
@asynccontextmanager
async def proxy(socks: bool) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A SOCKS5 or PROXY v2 proxy for IPv4: yields its port and the headers it read."""
    seen: list[bytes] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if socks:
            assert await reader.readexactly(3) == b"\x05\x01\x00"
            writer.write(b"\x05\x00")
            head = await reader.readexactly(4)
            address = await reader.readexactly(6)
            seen.append(head + address)
            port = struct.unpack("!H", address[4:])[0]
            writer.write(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
        else:
            head = await reader.readexactly(28)
            seen.append(head)
            port = struct.unpack("!H", head[26:])[0]
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        for pair in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(pump(*pair))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()


@pytest.mark.parametrize("scheme", ["socks5", "haproxy"])
async def test_egress_through_a_proxy(scheme: str) -> None:
    async with Scripted() as server, proxy(scheme == "socks5") as (port, seen):
        source = Source("s1", ip="192.0.2.7", proxy=f"{scheme}://127.0.0.1:{port}")
        async with Sender(source) as sender:
            assert (await sender.one(server.port)).accepted
    if scheme == "haproxy":
        assert seen == [v2_header("192.0.2.7", 0, "127.0.0.1", server.port)]
    assert len(seen) == 1


async def test_a_dead_proxy_never_means_going_out_directly() -> None:
    async with Scripted() as server, Scripted() as gone:
        source = Source("s1", proxy=f"socks5://127.0.0.1:{gone.port}")
        async with Sender(source) as sender:
            result = await sender.one(server.port)  # an SMTP server is no SOCKS5 proxy
    assert not result.accepted
    assert server.connections == 0
