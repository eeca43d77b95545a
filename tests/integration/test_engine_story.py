"""The engine over a real spool, a real Redis and simulated providers: what becomes of jobs."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis

from mailweir.contracts.job import Bucket, JobMeta
from mailweir.contracts.lifecycle import State
from mailweir.contracts.policy import BucketPolicy, Retry, Throttle
from mailweir.contracts.route import Chunk, Orders
from mailweir.plumbing import keys
from mailweir.plumbing.clock import REAL
from simulator.behaviour import Behaviour
from simulator.control import Simulator
from simulator.witness import read
from suppression import store
from suppression.entries import Entry
from tests.integration.engine_rig import LONGEST, Rig, policy_for, settings_for, until
from workers.archive import COPIES
from workers.delivery.types import Envelope

pytestmark = pytest.mark.needs("redis")


class House:
    """A rig beside its simulator."""

    def __init__(self, rig: Rig, simulator: Simulator, folder: Path) -> None:
        self.rig = rig
        self.simulator = simulator
        self.folder = folder

    def arrived(self) -> list[str]:
        return [line["recipient"] for line in read(self.folder / "witness.jsonl")]

    def behave(self, **behaviour: object) -> None:
        self.simulator.command({"do": "set", "provider": "generic", "behaviour": behaviour})

    async def deliver(self, chunks: list[Chunk]) -> None:
        async with self.rig.worker() as worker:
            await asyncio.gather(*(worker.engine.work(chunk) for chunk in chunks))


@pytest.fixture
async def house(tmp_path: Path, redis_url: str, redis_clean: redis.Redis) -> AsyncIterator[House]:
    folder = tmp_path / "sim"
    simulator = Simulator(folder, REAL, profiles={"generic": Behaviour(connections=100)})
    await simulator.start()
    settings = settings_for(tmp_path, redis_url, simulator.mx_map)
    retry = BucketPolicy(retry=Retry(uncertain="resend", max_age=86400.0))
    rig = Rig.build(settings, policy_for("sim.example", transactional=retry))
    yield House(rig, simulator, folder)
    await simulator.stop()


async def test_what_expired_on_its_way_is_not_sent(house: House) -> None:
    rig = house.rig
    [late] = rig.accept(["late@sim.example"], expires_in=0.0)
    [kept] = rig.accept(["kept@sim.example"], expires_in=3600.0)
    [chunk] = rig.settle()
    assert set(chunk.jobs) == {late, kept}
    await house.deliver([chunk])
    assert rig.states([late]) == {State.EXPIRED: 1}
    assert rig.states([kept]) == {State.SENT: 1}
    assert house.arrived() == ["kept@sim.example"]
    assert [a["job_id"] for a in rig.attempts()] == [kept]
    [chunk_row] = rig.chunks()
    assert chunk_row["done_real"] is not None


async def test_five_hundred_jobs_are_sent_once_each(house: House) -> None:
    rig = house.rig
    ids = rig.accept([f"u{i}@d{i % 7}.sim.example" for i in range(500)])
    chunks = rig.settle()
    assert len(chunks) == 10
    await house.deliver(chunks)
    assert rig.states(ids) == {State.SENT: 500}
    assert sorted(house.arrived()) == sorted(f"u{i}@d{i % 7}.sim.example" for i in range(500))
    attempts = rig.attempts()
    assert len(attempts) == 500
    assert {a["outcome"] for a in attempts} == {"sent"}
    assert {a["number"] for a in attempts} == {1}
    assert sum(int(v) for v in rig.client.hgetall(keys.FLEET.format(queue="bulk")).values()) == 500
    assert rig.client.xlen(keys.EVENTS) >= 1
    assert rig.client.keys("mw:indata:*") == []
    assert rig.client.hgetall(keys.WORKERS) == {}
    assert rig.client.smembers(keys.PATH_INDEX) == {b"mx1|sim.example"}


async def test_a_chunk_delivered_twice_is_sent_once(house: House) -> None:
    ids = house.rig.accept(["a@sim.example", "b@sim.example"])
    [chunk] = house.rig.settle()
    await house.deliver([chunk, chunk])
    assert house.rig.states(ids) == {State.SENT: 2}
    assert len(house.arrived()) == 2


async def test_each_recipient_has_its_own_fate(house: House) -> None:
    house.behave(unknown=0.5)
    rig = house.rig
    ids = rig.accept([f"u{i}@sim.example" for i in range(60)])
    await house.deliver(rig.settle())
    states = rig.states(ids)
    assert states[State.SENT] == len(house.arrived())
    assert states[State.SENT] + states[State.BOUNCED] == 60
    assert states[State.BOUNCED] > 5
    bounced = [a for a in rig.attempts() if a["outcome"] == "bounced"]
    assert {a["suppress"] for a in bounced} == {"recipient:"}
    assert {a["blame"] for a in bounced} == {"recipient"}
    phase = rig.client.hget(keys.path_state("mx1", "sim.example"), "phase")
    assert phase in (None, b"closed"), "recipients' faults open no breaker"


async def test_greylisting_keeps_the_source_and_comes_back_later(house: House) -> None:
    house.behave(greylist=3600.0)
    rig = house.rig
    [job_id] = rig.accept(["a@sim.example"])
    await house.deliver(rig.settle())
    job = rig.spool.job(job_id)
    assert job is not None
    assert job.state == State.DEFERRED
    assert job.stay_with == "mx1"
    assert job.attempts == 1
    assert job.due_at is not None
    assert 3590 < job.due_at - rig.clock.now() < 3600 * 1.2, "the reply's own hint, never earlier"


async def test_a_connection_lost_after_the_dot_is_uncertain(house: House) -> None:
    house.behave(after_dot="reset")
    rig = house.rig
    [bulk] = rig.accept(["bulk@sim.example"])
    [code] = rig.accept(["code@sim.example"], Bucket.TRANSACTIONAL)
    await house.deliver(rig.settle() + rig.settle(Bucket.TRANSACTIONAL))
    left, again = rig.spool.job(bulk), rig.spool.job(code)
    assert left is not None
    assert again is not None
    assert (left.state, left.due_at) == (State.UNCERTAIN, None)
    assert again.state == State.UNCERTAIN
    assert again.due_at is not None
    assert 890 < again.due_at - rig.clock.now() <= 900
    assert again.stay_with == "mx1"


async def test_five_refused_connections_open_the_breaker_and_jobs_are_routed_anew(
    house: House,
) -> None:
    house.behave(outage=1.0)
    rig = house.rig
    ids = rig.accept([f"u{i}@sim.example" for i in range(8)])
    await house.deliver(rig.settle())
    assert rig.states(ids) == {State.DEFERRED: 8}
    assert rig.client.hget(keys.path_state("mx1", "sim.example"), "phase") == b"open"
    house.behave(outage=0.0)
    more = rig.accept(["late@sim.example"])
    await house.deliver(rig.settle())
    job = rig.spool.job(more[0])
    assert job is not None
    assert (job.state, job.attempts) == (State.DUE, 0)
    assert job.reason == "path shut: mx1 to sim.example"
    assert job.due_at == job.accepted_at, "before what is due later than it"

    # routed this way once more by a router that could have known: it does not go back and forth
    await house.deliver(rig.settle(routed_in=5.0))
    job = rig.spool.job(more[0])
    assert job is not None
    assert (job.state, job.attempts) == (State.HELD, 0)
    assert job.reason is not None
    assert "path:mx1|sim.example" in job.reason
    assert job.due_at is not None
    assert 50 < job.due_at - rig.clock.now() < 75
    assert house.arrived() == []


async def test_over_the_limit_jobs_are_held_with_places_in_time(house: House) -> None:
    rig = house.rig
    rig.apply(policy_for("sim.example", rate=Throttle(60, 60)))
    ids = rig.accept([f"u{i}@sim.example" for i in range(30)])
    await house.deliver(rig.settle())
    states = rig.states(ids)
    assert states[State.SENT] <= 6
    held = [job for job in map(rig.spool.job, ids) if job is not None and job.state == State.HELD]
    assert len(held) >= 24
    assert all(job.attempts == 0 for job in held)
    dues = sorted(job.due_at for job in held if job.due_at is not None)
    assert len(set(dues)) > 5, "they do not come back as a herd"
    assert dues[-1] - rig.clock.now() < 15


async def test_a_suppressed_address_is_refused_at_the_last_moment(house: House) -> None:
    rig = house.rig
    good, bad = rig.accept(["good@sim.example", "bad@sim.example"])
    chunks = rig.settle()
    with rig.spool.database.write() as conn:
        store.add(conn, [Entry("bad@sim.example", "global", "hard_bounce", rig.clock.now())])
    await house.deliver(chunks)
    assert rig.states([good]) == {State.SENT: 1}
    job = rig.spool.job(bad)
    assert job is not None
    assert job.state == State.REFUSED
    assert job.reason is not None
    assert job.reason.startswith("suppressed")
    assert house.arrived() == ["good@sim.example"]


async def test_an_unknown_source_gives_the_chunk_back(house: House) -> None:
    ids = house.rig.accept(["a@sim.example"])
    await house.deliver(house.rig.settle(source="gone"))
    assert house.rig.states(ids) == {State.DUE: 1}
    assert house.arrived() == []


async def test_bytes_no_code_can_send_end_alone(house: House) -> None:
    rig = house.rig
    bad = rig.accept(["a@sim.example"], body=b"Subject: x\n\nbare line feeds\n")
    good = rig.accept(["b@sim.example"])
    await house.deliver(rig.settle())
    assert rig.states(bad) == {State.DEAD_LETTER: 1}
    assert rig.states(good) == {State.SENT: 1}


async def test_a_demanded_signature_without_a_key_holds_the_job(house: House) -> None:
    ids = house.rig.accept(["a@sim.example"])
    await house.deliver(house.rig.settle(orders=Orders(rule="signed", sign=True)))
    assert house.rig.states(ids) == {State.HELD: 1}
    assert house.arrived() == []


async def test_sandbox_mail_goes_the_whole_way_but_out(house: House) -> None:
    ids = house.rig.accept(["a@sim.example"], meta=JobMeta(sandbox=True))
    await house.deliver(house.rig.settle())
    assert house.rig.states(ids) == {State.SENT: 1}
    assert house.arrived() == []
    [attempt] = house.rig.attempts()
    assert attempt["provider"] == "sandbox"


async def test_a_stop_gives_back_what_has_not_begun(house: House) -> None:
    house.behave(slow_dot=0.2)
    rig = house.rig
    ids = rig.accept([f"u{i}@sim.example" for i in range(50)])
    [chunk] = rig.settle()
    async with rig.worker() as worker:
        work = asyncio.create_task(worker.engine.work(chunk))
        await until(house.arrived, work, seen=lambda: rig.states(ids))
        worker.stop()
        await work
    states = rig.states(ids)
    assert states[State.SENT] == len(house.arrived())
    assert states[State.SENT] >= 1
    assert states[State.SENT] + states[State.DUE] == 50


async def test_a_revoked_chunk_leaves_no_job_behind(house: House) -> None:
    house.behave(slow_dot=5.0)
    rig = house.rig
    ids = rig.accept([f"u{i}@sim.example" for i in range(50)])
    [chunk] = rig.settle()
    async with rig.worker() as worker:
        work = asyncio.create_task(worker.engine.work(chunk))
        await until(house.arrived, work, seen=lambda: rig.states(ids))
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    states = rig.states(ids)
    assert states[State.UNCERTAIN] == len(house.arrived()), "only what may be out"
    assert states[State.UNCERTAIN] + states[State.DUE] == 50


@pytest.mark.parametrize("held", ["take", "read"])
async def test_a_chunk_cut_short_before_it_was_read_goes_back_at_once(
    house: House, held: str
) -> None:
    """Taken in the database and in nobody's hands: it must not wait for the end of its lease."""
    rig = house.rig
    ids = rig.accept([f"u{i}@sim.example" for i in range(20)])
    [chunk] = rig.settle()
    began, go_on = threading.Event(), threading.Event()
    async with rig.worker() as worker:
        spool = worker.engine.parts.spool
        name = "turn" if held == "take" else "taken"
        real = getattr(spool, name)

        def slow(*args: Any) -> Any:
            if held == "take" and args[-1] is None:
                return real(*args)  # another turn than the one that takes
            began.set()
            assert go_on.wait(LONGEST)
            return real(*args)

        setattr(spool, name, slow)
        work = asyncio.create_task(worker.engine.work(chunk))
        await until(began.is_set, work)
        work.cancel()
        await asyncio.sleep(0)  # the cancellation arrives while the thread is at it
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert rig.states(ids) == {State.DUE: 20}
        assert not worker.engine.live
    assert house.arrived() == []
    assert {job.crashes for job in map(rig.spool.job, ids) if job is not None} == {0}


async def test_a_second_cancellation_leaves_no_chunk_open(house: House) -> None:
    house.behave(slow_dot=5.0)
    rig = house.rig
    ids = rig.accept([f"u{i}@sim.example" for i in range(20)])
    [chunk] = rig.settle()
    begun, go_on = threading.Event(), threading.Event()
    async with rig.worker() as worker:
        spool = worker.engine.parts.spool
        real = spool.turn

        def slow(outcomes: Any, closing: Any, taking: Any) -> Any:
            if outcomes or closing:
                begun.set()
                assert go_on.wait(LONGEST)
            return real(outcomes, closing, taking)

        setattr(spool, "turn", slow)  # noqa: B010 - mypy allows no assignment to a method
        work = asyncio.create_task(worker.engine.work(chunk))
        await until(house.arrived, work, seen=lambda: rig.states(ids))
        work.cancel()
        await until(begun.is_set, work)
        work.cancel()  # while its last outcomes are written
        with pytest.raises(asyncio.CancelledError):
            await work
        go_on.set()
        await until(lambda: not worker.engine.live, seen=lambda: worker.engine.live)
    states = rig.states(ids)
    assert states[State.UNCERTAIN] + states[State.DUE] == 20


async def test_mails_are_let_go_with_their_chunk(house: House) -> None:
    """Not when cycles are collected some day: large ones would be thousands of megabytes by then."""
    rig = house.rig
    ids = rig.accept([f"u{i}@sim.example" for i in range(20)])
    [chunk] = rig.settle()
    async with rig.worker() as worker:
        gc.collect()
        gc.disable()
        try:
            await worker.engine.work(chunk)
            await until(lambda: not any(isinstance(o, Envelope) for o in gc.get_objects()))
        finally:
            gc.enable()
    assert rig.states(ids) == {State.SENT: 20}


async def test_an_archive_gets_one_copy_of_each_mail_that_was_sent(house: House) -> None:
    house.behave(unknown=0.3)
    rig = house.rig
    orders = Orders(rule="keep", archive="archive@store.sim.example")
    ids = rig.accept([f"u{i}@sim.example" for i in range(20)])
    await house.deliver(rig.settle(orders=orders))
    states = rig.states(ids)
    assert states[State.SENT] + states[State.BOUNCED] == 20
    assert states[State.SENT] >= 5
    lines = list(read(house.folder / "witness.jsonl"))
    copies = [line for line in lines if line["recipient"] == "archive@store.sim.example"]
    mails = [line for line in lines if line["recipient"] != "archive@store.sim.example"]
    assert len(mails) == states[State.SENT]
    assert {line["sender"] for line in copies} == {""}, "its bounces are nobody's"
    assert {line["sha256"] for line in copies} == {line["sha256"] for line in mails}
    assert len(copies) == len(mails)
    assert len(rig.attempts()) == 20


async def test_a_dead_archive_changes_no_outcome(house: House) -> None:
    rig = house.rig
    mx_map = {**rig.settings.dns.mx_map, "store.example": ["127.0.0.1:1"]}
    dns = rig.settings.dns.model_copy(update={"mx_map": mx_map})
    rig.settings = rig.settings.model_copy(update={"dns": dns})
    orders = Orders(rule="keep", archive="archive@store.example")
    ids = rig.accept(["a@sim.example", "b@sim.example"])
    before = COPIES.labels("failed")._value.get()
    await house.deliver(rig.settle(orders=orders))
    assert rig.states(ids) == {State.SENT: 2}
    assert sorted(house.arrived()) == ["a@sim.example", "b@sim.example"]
    assert COPIES.labels("failed")._value.get() == before + 2
    assert {a["outcome"] for a in rig.attempts()} == {"sent"}


async def test_a_campaign_that_bounces_is_slowed_and_no_other(house: House) -> None:
    rig = house.rig
    rig.client.hset(keys.CAMPAIGNS_SLOWED, "acme|spring", "0.1")
    spring = rig.accept([f"s{i}@sim.example" for i in range(10)], meta=JobMeta(campaign="spring"))
    autumn = rig.accept([f"a{i}@sim.example" for i in range(10)], meta=JobMeta(campaign="autumn"))
    await house.deliver(rig.settle())
    assert rig.states(autumn) == {State.SENT: 10}
    assert rig.states(spring)[State.HELD] >= 9
    held = [job for job in map(rig.spool.job, spring) if job is not None and job.state == "held"]
    assert {(job.reason, job.attempts) for job in held} == {("throttle: campaign:acme|spring", 0)}
    counted = {k: int(v) for k, v in rig.client.hgetall(keys.campaign("acme|autumn")).items()
               if k in (b"sent", b"bounced")}  # fmt: skip
    assert counted == {b"sent": 10, b"bounced": 0}
