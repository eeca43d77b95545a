"""Where mail goes: MX rules against a DNS server on loopback, the static map, relays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mailweir.contracts.policy import Policy, Provider, Source
from mailweir.plumbing.settings import Settings
from tests.services.dns import Dns, Records
from workers.delivery.destinations import Destinations, DnsTrouble, NoMail
from workers.delivery.types import Hop

ZONE: Records = {
    ("plain.test", "MX"): (600, ["20 mx2.plain.test.", "10 mx1.plain.test."]),
    ("mx1.plain.test", "A"): (600, ["198.51.100.1"]),
    ("mx1.plain.test", "AAAA"): (600, ["2001:db8::1"]),
    ("mx2.plain.test", "A"): (600, ["198.51.100.2"]),
    ("implicit.test", "A"): (600, ["198.51.100.3"]),
    ("null.test", "MX"): (600, ["0 ."]),
    ("notalone.test", "MX"): (600, ["0 .", "10 mx1.plain.test."]),
    ("nothing.test", "TXT"): (600, ['"only text"']),
    ("broken.test", "MX"): "SERVFAIL",
    ("workspace.test", "MX"): (5, ["1 ASPMX.L.GOOGLE.COM."]),
    ("aspmx.l.google.com", "A"): (600, ["198.51.100.4"]),
    ("many.test", "MX"): (600, [f"{i} mx{i}.many.test." for i in range(1000)]),
    **{(f"mx{i}.many.test", "A"): (600, ["198.51.100.5"]) for i in range(1000)},
    ("deadhosts.test", "MX"): (600, ["10 gone.deadhosts.test."]),
    ("halfdead.test", "MX"): (600, ["10 servfail.test.", "20 mx2.plain.test."]),
    ("servfail.test", "A"): "SERVFAIL",
}


@asynccontextmanager
async def resolving(policy: Policy | None = None, **dns_settings: Any) -> AsyncIterator[Any]:
    async with Dns(ZONE) as server:
        settings = Settings.model_validate(
            {"dns": {"nameservers": [server.address], **dns_settings}}
        )
        destinations = Destinations(settings, policy)
        yield destinations, server
        await destinations.close()


async def test_mx_hosts_by_preference_with_their_addresses() -> None:
    async with resolving() as (destinations, _):
        found = await destinations.resolve("plain.test")
    assert found.hosts == (
        Hop("mx1.plain.test", 25, "198.51.100.1"),
        Hop("mx1.plain.test", 25, "2001:db8::1"),
        Hop("mx2.plain.test", 25, "198.51.100.2"),
    )
    assert found.provider == "plain.test"


async def test_implicit_mx() -> None:
    async with resolving() as (destinations, _):
        found = await destinations.resolve("implicit.test")
    assert found.hosts == (Hop("implicit.test", 25, "198.51.100.3"),)


@pytest.mark.parametrize(
    ("domain", "detail"),
    [("null.test", "556 5.1.10"), ("nx.test", "556 5.1.2"), ("nothing.test", "556 5.1.2")],
)
async def test_a_domain_without_mail_is_permanent(domain: str, detail: str) -> None:  # P26, P29
    async with resolving() as (destinations, _):
        with pytest.raises(NoMail) as error:
            await destinations.resolve(domain)
    assert error.value.reply == "555 no MX record"
    assert error.value.detail.startswith(detail)


@pytest.mark.parametrize("domain", ["broken.test", "silent.test", "deadhosts.test"])
async def test_dns_failures_are_temporary(domain: str) -> None:  # P29
    # one that says nothing is soon given up
    quick = {"timeout": 0.2, "lifetime": 0.5} if domain == "silent.test" else {}
    async with resolving(**quick) as (destinations, _):
        with pytest.raises(DnsTrouble):
            await destinations.resolve(domain)


async def test_one_failing_host_does_not_hide_the_others() -> None:
    async with resolving() as (destinations, _):
        found = await destinations.resolve("halfdead.test")
    assert [h.host for h in found.hosts] == ["mx2.plain.test"]


async def test_null_mx_among_others_is_no_null_mx() -> None:
    async with resolving() as (destinations, _):
        assert (await destinations.resolve("notalone.test")).hosts[0].host == "mx1.plain.test"


async def test_rollup_to_the_provider() -> None:
    async with resolving() as (destinations, _):
        found = await destinations.resolve("workspace.test")
    assert found.provider == "gmail"


async def test_first_ten_of_a_thousand() -> None:  # P28
    async with resolving() as (destinations, server):
        found = await destinations.resolve("many.test")
        assert [h.host for h in found.hosts] == [f"mx{i}.many.test" for i in range(10)]
        assert len(server.asked) <= 22


async def test_answers_are_cached_and_asked_once_together() -> None:
    async with resolving() as (destinations, server):
        await asyncio.gather(*(destinations.resolve("workspace.test") for _ in range(50)))
        assert server.asked.count("MX workspace.test") == 1
        await destinations.resolve("workspace.test")  # its TTL is 5 s, kept 300 s at least
        assert server.asked.count("MX workspace.test") == 1
        for _ in range(2):
            with pytest.raises(DnsTrouble):
                await destinations.resolve("broken.test")
        once = server.asked.count("MX broken.test")
        with pytest.raises(DnsTrouble):
            await destinations.resolve("broken.test")
        assert server.asked.count("MX broken.test") == once


async def test_short_ttl_is_asked_again() -> None:
    async with resolving(min_ttl=0, max_ttl=0) as (destinations, server):
        await destinations.resolve("implicit.test")
        await destinations.resolve("implicit.test")
        assert server.asked.count("A implicit.test") == 2


async def test_a_provider_without_ipv6_gets_none() -> None:
    policy = Policy(providers={"plain.test": Provider("plain.test", ipv6=False)})
    async with resolving(policy) as (destinations, _):
        found = await destinations.resolve("plain.test")
    assert all(":" not in (hop.address or "") for hop in found.hosts)


async def test_static_map_comes_before_dns() -> None:
    mapped = {"gmail.com": ["127.0.0.1:2525", "[::1]:2526"], "*": ["sink.local"]}
    async with resolving(mx_map=mapped) as (destinations, server):
        gmail = await destinations.resolve("gmail.com")
        other = await destinations.resolve("other.test")
    assert gmail.hosts == (
        Hop("127.0.0.1", 2525, trusted=True),
        Hop("::1", 2526, trusted=True),
    )
    assert gmail.provider == "gmail"
    assert other.hosts == (Hop("sink.local", 25, trusted=True),)
    assert other.provider == "other.test"
    assert server.asked == []


async def test_a_relay_takes_all_and_keeps_the_provider() -> None:
    relay = Source("ses", kind="relay", host="email-smtp.test", port=465)
    async with resolving() as (destinations, server):
        found = await destinations.resolve("gmail.com", relay)
    assert found.hosts == (Hop("email-smtp.test", 465, implicit_tls=True, trusted=True),)
    assert (found.provider, found.site) == ("gmail", "email-smtp.test:465")
    assert server.asked == []
