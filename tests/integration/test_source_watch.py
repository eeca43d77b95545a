"""N57 with a real resolver: what DNS says of our addresses reaches the manager; private ones are not asked."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from mailweir.contracts.policy import Member, Policy, Pool, Source
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database
from mailweir.plumbing.settings import Settings
from reputation import history
from reputation.certificate_look import look
from reputation.policy.book import Book, PathKey, Tried
from reputation.policy.watch import Certificate
from reputation.source_watch import SourceWatch
from simulator.ports import free_port
from tests.contract.suppression.rows import sqlite
from tests.services.authority import Authority
from tests.services.dns import Dns, Records

GOOD, LISTED, PRIVATE = "8.8.4.10", "8.8.4.11", "127.0.0.21"
RECORDS: Records = {
    ("10.4.8.8.in-addr.arpa", "PTR"): (60, ["mx1.news.example."]),
    ("mx1.news.example", "A"): (60, [GOOD]),
    ("11.4.8.8.in-addr.arpa", "PTR"): (60, ["generic.host.example."]),
    ("11.4.8.8.zen.spamhaus.org", "A"): (60, ["127.0.0.2"]),
}
POLICY = Policy(
    sources={
        "good": Source("good", ip=GOOD, ehlo="mx1.news.example"),
        "listed": Source("listed", ip=LISTED, ehlo="mx2.news.example"),
        "private": Source("private", ip=PRIVATE, ehlo="x.news.example"),
    },
    pools={"main": Pool("main", (Member("good"), Member("listed"), Member("private")))},
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    yield from sqlite(tmp_path)


def settings(address: str, **reputation: Any) -> Settings:
    return Settings.model_validate(
        {
            "dns": {"nameservers": [address], "timeout": 2.0},
            "reputation": {"watch_ports": [], **reputation},
        }
    )


async def test_a_listing_takes_the_source_out_and_its_end_brings_it_back(
    database: Database,
) -> None:
    async with Dns(dict(RECORDS)) as server:
        watch = SourceWatch(settings(server.address), database, lambda: POLICY, Clock())
        found = await asyncio.to_thread(watch.look)
        assert {(f.source, f.check) for f in found} == {
            ("listed", "dnsbl"),
            ("listed", "fcrdns"),
            ("listed", "ehlo"),
        }
        assert not [q for q in server.asked if "21.0.0.127" in q or "x.news" in q]
        book = Book(POLICY, ("gmail",))
        book.tried(Tried(1.8e9, PathKey("listed", "gmail", "bulk"), 1, "sent", None, None, 0.1))
        history.refresh_signals(database, book)
        book.look(1.8e9)
        state = book.publish(1.8e9, {})["listed|gmail|bulk"]
        assert (state.state, state.weight) == ("suspended", 0.0)
        assert "zen.spamhaus.org" in state.reasons[0]

        del server.records[("11.4.8.8.zen.spamhaus.org", "A")]
        await asyncio.to_thread(watch.look)
        history.refresh_signals(database, book)
        assert book.listed == {}


@pytest.mark.parametrize(("every", "looks"), [(0.001, True), (0.0, False)])
async def test_it_runs_at_its_interval_or_not_at_all(
    database: Database, every: float, looks: bool
) -> None:
    async with Dns(dict(RECORDS)) as server:
        watch = SourceWatch(
            settings(server.address, watch_every=every), database, lambda: POLICY, Clock()
        )
        stop, beats = threading.Event(), [0]

        def beat() -> None:
            beats[0] += 1

        thread = threading.Thread(target=watch.run, args=(stop.is_set, beat))
        thread.start()
        for _ in range(500):
            first = [q for q in server.asked if q.startswith("PTR 10.4")]
            if len(first) >= 2 or (not looks and beats[0] > 2):
                break
            await asyncio.sleep(0.02)  # the resolver answers in this loop
        stop.set()
        await asyncio.to_thread(thread.join)
        assert bool(server.asked) is looks
        assert (len(first) >= 2) is looks


class Door:
    """A mail server at loopback that offers STARTTLS with a certificate."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._controller = Controller(
            object(), hostname="127.0.0.1", port=free_port(), tls_context=context
        )
        self._controller.start()
        self.port = self._controller.port

    def close(self) -> None:
        self._controller.stop()


@pytest.mark.parametrize(
    ("name", "age", "faults"),
    [
        ("mx1.news.example", 60, ()),
        ("mx1.news.example", 5, ()),  # said, no fault yet
        ("mx1.news.example", -1, ("certificate",)),
        ("other.example", 60, ("certificate",)),
    ],
)
async def test_the_certificate_at_an_own_address(
    database: Database, tmp_path: Path, name: str, age: int, faults: tuple[str, ...]
) -> None:
    identity = Authority(tmp_path).issue(name, age=datetime.timedelta(days=age))
    door = Door(identity.context())
    looked: list[str] = []

    def there(ip: str, port: int, timeout: float) -> Certificate | None:
        looked.append(f"{ip}:{port}")
        return look("127.0.0.1", door.port if port == 25 else free_port(), timeout)

    try:
        async with Dns(dict(RECORDS)) as server:
            watch = SourceWatch(
                settings(server.address, watch_ports=[25, 587]),
                database,
                lambda: Policy(sources={"good": POLICY.sources["good"]}, pools={}),
                Clock(),
                there,
            )
            found = await asyncio.to_thread(watch.look)
    finally:
        door.close()
    assert looked == [f"{GOOD}:25", f"{GOOD}:587"]
    assert [f.check for f in found] == (
        [] if (name, age) == ("mx1.news.example", 60) else ["certificate"]
    )
    book = Book(POLICY, ("gmail",))
    history.refresh_signals(database, book)
    assert book.faults == ({"good": faults} if faults else {})


def test_who_has_no_certificate_has_none_to_judge() -> None:
    door = Door(None)
    try:
        assert look("127.0.0.1", door.port, 2.0) is None
    finally:
        door.close()
    assert look("127.0.0.1", free_port(), 2.0) is None
