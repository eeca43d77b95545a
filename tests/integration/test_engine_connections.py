"""Connection caps hold over workers: a server counts what is open toward it (S33)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import redis

from mailweir.contracts.lifecycle import State
from mailweir.contracts.policy import Provider
from mailweir.plumbing import keys
from tests.integration.engine_rig import FAST, LONGEST, Rig, policy_for, settings_for
from workers import connections

pytestmark = pytest.mark.needs("redis")
CAP = 3
LEASE = 5.0  # seconds; long enough for a chunk that finds no connection


class CountingServer:
    """Takes every mail after 20 ms and counts the connections open at once."""

    def __init__(self) -> None:
        self.open = 0
        self.most = 0
        self.mails = 0
        self.total = 0
        self.port = 0

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def until(self, count: int) -> None:
        """Wait until so many connections are open."""
        async with asyncio.timeout(LONGEST):
            while self.open != count:
                await asyncio.sleep(0.02)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.total += 1
        self.most = max(self.most, self.open)
        try:
            writer.write(b"220 sink.example ESMTP\r\n")
            while line := await reader.readline():
                verb = line[:4].upper()
                if verb == b"EHLO":
                    writer.write(b"250-sink.example\r\n250 PIPELINING\r\n")
                elif verb == b"DATA":
                    writer.write(b"354 go\r\n")
                    while await reader.readline() != b".\r\n":
                        pass
                    await asyncio.sleep(0.02)
                    self.mails += 1
                    writer.write(b"250 2.0.0 taken\r\n")
                elif verb == b"QUIT":
                    break
                else:
                    writer.write(b"250 2.0.0 ok\r\n")
        except ConnectionError:
            pass  # a sender that went away
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[CountingServer]:
    counting = CountingServer()
    listening = await counting.start()
    yield counting
    listening.close()


@pytest.fixture
def rig(tmp_path: Path, redis_url: str, redis_clean: redis.Redis, server: CountingServer) -> Rig:
    policy = policy_for()
    narrow = {
        name: Provider(name, connections=CAP, per_connection=20, rate=FAST, cold_rate=FAST)
        for name in ("other", "sink.example")
    }
    settings = settings_for(tmp_path, redis_url, {"*": [f"127.0.0.1:{server.port}"]})
    return Rig.build(settings, msgspec.structs.replace(policy, providers=narrow))


async def test_two_workers_together_open_no_more_than_the_cap(
    rig: Rig, server: CountingServer
) -> None:
    ids = rig.accept([f"u{i}@sink.example" for i in range(300)])
    async with rig.worker(name="w1@test") as one, rig.worker(name="w2@test") as two:
        while rig.states(ids)[State.SENT] < 300:
            chunks = rig.settle(size=20)
            half = len(chunks) // 2
            await asyncio.gather(
                *(one.engine.work(chunk) for chunk in chunks[:half]),
                *(two.engine.work(chunk) for chunk in chunks[half:]),
            )
            await asyncio.sleep(0.1)
        assert server.most == CAP, "the whole cap was used, and never more"
        [site] = rig.client.keys(keys.connection_leases("mx1", "*"))
        assert rig.client.zcard(site) <= CAP
    assert server.mails == 300
    assert rig.client.keys(keys.connection_leases("mx1", "*")) == [], "given back at the end"


async def test_a_dead_worker_s_connections_are_free_after_its_lease(
    rig: Rig, server: CountingServer
) -> None:
    first = rig.accept(["first@sink.example"])
    async with rig.worker() as worker:
        await worker.engine.work(rig.settle()[0])
        [name] = rig.client.keys(keys.connection_leases("mx1", "*"))
        assert isinstance(name, bytes)
        site = name.decode().partition("|")[2]
    assert rig.states(first) == {State.SENT: 1}
    ids = rig.accept([f"u{i}@sink.example" for i in range(20)])
    async with rig.worker() as worker:
        book = connections.RedisLeases(worker._redis)
        [chunk] = rig.settle()
        [held] = await book.claim("dead", [connections.Claim("mx1", site, CAP, CAP, 1)], LEASE)
        assert held.leases == CAP
        await worker.engine.work(chunk)
        assert rig.states(ids) == {State.HELD: 20}
        job = rig.spool.job(ids[0])
        assert job is not None
        assert (job.reason, job.attempts) == ("throttle: connections of mx1", 0)
        async with asyncio.timeout(LONGEST):
            while rig.states(ids)[State.SENT] < 20:
                await asyncio.gather(*(worker.engine.work(chunk) for chunk in rig.settle()))
                await asyncio.sleep(0.1)
    assert server.most <= CAP


async def test_a_starting_worker_prewarms_the_busiest_destination(
    rig: Rig, server: CountingServer
) -> None:
    smtp = rig.settings.smtp.model_copy(update={"prewarm": 2})
    rig.settings = rig.settings.model_copy(update={"smtp": smtp})
    ids = rig.accept([f"u{i}@sink.example" for i in range(8)])
    async with rig.worker() as worker:
        await worker.engine.work(rig.settle()[0])
    assert rig.states(ids) == {State.SENT: 8}
    await server.until(0)
    async with rig.worker() as worker:
        await server.until(2)
        opened = server.total
        [site] = rig.client.keys(keys.connection_leases("mx1", "*"))
        assert rig.client.zcard(site) == 2, "under leases like any other"
        more = rig.accept(["one@sink.example"])
        await worker.engine.work(rig.settle()[0])
        assert rig.states(more) == {State.SENT: 1}
        assert server.total == opened, "no connection more"
        await server.until(2)  # it went over one of them
