"""The pool's parts without Celery around them: slots, jobs, hooks, the loop thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.pool_hooks import Hooks
from workers.pool_job import PoolJob, current_request
from workers.pool_loop import LoopDied, LoopThread
from workers.pool_slots import Slots


class Told:
    """What a request was told."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.accepted: list[int] = []
        self.timeouts: list[tuple[bool, float]] = []


def job(
    work: Callable[[], Any],
    told: Told,
    *,
    token: int = 1,
    soft: float | None = None,
    hard: float | None = None,
) -> PoolJob:
    async def run() -> Any:
        return await work()

    app = SimpleNamespace(tasks={"t": SimpleNamespace(run=run)})
    return PoolJob(
        token=token,
        app=app,
        target=lambda *_: (0, None, 0.0),
        args=("t", f"id{token}", {"args": (), "kwargs": {}, "id": f"id{token}"}, b"", "", ""),
        callback=told.answers.append,
        accept_callback=lambda token, _: told.accepted.append(token),
        timeout_callback=lambda soft, seconds: told.timeouts.append((soft, seconds)),
        soft=soft,
        hard=hard,
    )


async def settled(slots: Slots) -> None:
    async with asyncio.timeout(5):
        while slots.running_count or slots.waiting_count:
            await asyncio.sleep(0)


@given(
    limit=st.integers(1, 5),
    count=st.integers(0, 20),
    changes=st.lists(st.integers(1, 6), max_size=3),
)
def test_never_more_than_the_slots_and_everybody_runs_in_order(
    limit: int, count: int, changes: list[int]
) -> None:
    async def main() -> None:
        told, began = Told(), []
        slots = Slots(limit)
        bound = limit
        most = 0

        def work(number: int) -> Callable[[], Any]:
            async def run() -> None:
                nonlocal most
                began.append(number)
                most = max(most, slots.running_count)
                await asyncio.sleep(0)

            return run

        for number in range(count):
            slots.submit(job(work(number), told, token=number))
        for change in changes:
            slots.resize(change)
            bound = max(bound, change)
        await settled(slots)
        assert most <= bound
        assert began == list(range(count)) == told.accepted
        assert len(told.answers) == count

    asyncio.run(main())


async def test_each_task_sees_its_own_request() -> None:
    told, slots = Told(), Slots(10)

    async def who() -> str:
        await asyncio.sleep(0.001)
        return str(current_request()["id"])

    for token in range(10):
        slots.submit(job(who, told, token=token))
    await settled(slots)
    assert {answer[1] for answer in told.answers} == {f"'id{n}'" for n in range(10)}
    with pytest.raises(LookupError):
        current_request()


async def test_a_stopped_job_answers_nothing() -> None:
    told, slots = Told(), Slots(1)

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return  # ends in order nevertheless

    slots.submit(job(stubborn, told))
    await asyncio.sleep(0)
    slots.cancel(1)
    slots.cancel(99)
    await settled(slots)
    assert told.answers == []


async def test_drain_answers_for_who_ends_in_order_only() -> None:
    told, slots = Told(), Slots(3)

    async def tidy() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return

    async def other() -> None:
        await asyncio.sleep(60)

    slots.submit(job(tidy, told, token=1))
    slots.submit(job(other, told, token=2))
    await asyncio.sleep(0)
    assert await slots.drain(0.01, 1.0) == 2
    assert len(told.answers) == 1
    slots.submit(job(other, told, token=3))
    assert (slots.running_count, slots.waiting_count) == (0, 0)
    assert told.accepted == [1, 2]


async def test_a_swallowed_soft_limit_is_a_success_and_a_raised_one_a_failure() -> None:
    told, slots = Told(), Slots(2)

    async def sleeps() -> None:
        await asyncio.sleep(60)

    slots.submit(job(sleeps, told, soft=0.01))
    await settled(slots)
    (answer,) = told.answers
    assert answer[0] == 1
    assert type(answer[1].exception.exc).__name__ == "SoftTimeLimitExceeded"
    assert told.timeouts == [(True, 0.01)]


async def test_a_hard_limit_is_told_once_and_not_answered() -> None:
    told, slots = Told(), Slots(1)

    async def sleeps() -> None:
        await asyncio.sleep(60)

    slots.submit(job(sleeps, told, hard=0.01))
    await settled(slots)
    assert told.timeouts == [(False, 0.01)]
    assert told.answers == []


async def test_hooks_run_in_order_and_all_get_their_turn() -> None:
    hooks, said = Hooks(), []

    @hooks.on_loop_start
    async def first() -> None:
        said.append("first")

    @hooks.on_stopping
    def bad() -> None:
        raise ValueError

    @hooks.on_stopping
    def good() -> None:
        said.append("stopping")

    @hooks.on_drain
    async def outer(seconds: float) -> None:
        said.append(f"outer {seconds > 0}")

    @hooks.on_drain
    async def inner(seconds: float) -> None:
        said.append("inner")
        raise OSError

    @hooks.on_drain
    async def slow(seconds: float) -> None:
        said.append("slow")
        await asyncio.sleep(seconds * 0.1)

    await hooks.start()
    hooks.stopping()
    await hooks.drain(1.0)
    assert said == ["first", "stopping", "slow", "inner", "outer True"]


def test_the_loop_thread_ends_and_says_when_it_died() -> None:
    deaths: list[BaseException | None] = []
    thread = LoopThread("t", deaths.append)
    thread.start()

    async def where() -> str:
        return threading.current_thread().name

    assert thread.call(where()) == "t"
    thread.stop()
    assert not thread.alive
    thread.soon(deaths.append, None)  # without effect
    with pytest.raises(LoopDied):
        thread.call(where())
    assert deaths == []

    told = threading.Event()

    def on_death(error: BaseException | None) -> None:
        deaths.append(error)
        told.set()

    dying = LoopThread("d", on_death)
    dying.start()

    async def stop_the_loop() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(60)

    with pytest.raises(LoopDied):
        dying.call(stop_the_loop())
    assert told.wait(10)
    assert deaths == [None]
