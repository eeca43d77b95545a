"""How much mail a worker holds at once."""

from __future__ import annotations

import asyncio
import contextlib

from hypothesis import example, given
from hypothesis import strategies as st

from workers.held_bytes import HELD, HeldBytes

MOST = 100


class Chunks:
    """Chunks in work, begun in order."""

    def __init__(self) -> None:
        self.held = HeldBytes(MOST)
        self.begun: list[int] = []
        self.now: dict[int, int] = {}
        self.peak = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.ends: list[asyncio.Event] = []

    def start(self, size: int) -> int:
        number = len(self.tasks)
        self.ends.append(asyncio.Event())
        self.tasks.append(asyncio.create_task(self._work(number, size)))
        return number

    async def _work(self, number: int, size: int) -> None:
        async with self.held.room(size):
            self.begun.append(number)
            self.now[number] = min(size, MOST)
            self.peak = max(self.peak, sum(self.now.values()))
            try:
                await self.ends[number].wait()
            finally:
                del self.now[number]

    async def end(self) -> None:
        for ended in self.ends:
            ended.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*self.tasks, return_exceptions=True)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_finds_no_room_waits_its_turn() -> None:
    chunks = Chunks()
    for size in (60, 40, 1, 500):
        chunks.start(size)
    await settled()
    assert chunks.begun == [0, 1]
    assert HELD._value.get() == MOST
    chunks.ends[0].set()
    await settled()
    assert chunks.begun == [0, 1, 2], "the large one waits until it is alone"
    small = chunks.start(1)
    await settled()
    assert small not in chunks.begun, "nobody passes it, else it waits for ever"
    chunks.ends[1].set()
    chunks.ends[2].set()
    await settled()
    assert chunks.begun == [0, 1, 2, 3]
    await chunks.end()
    assert chunks.begun == [0, 1, 2, 3, small]
    assert HELD._value.get() == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("start"), st.integers(0, 2 * MOST)),
            st.tuples(st.sampled_from(("end", "cancel")), st.integers(0, 20)),
        ),
        max_size=40,
    )
)
@example([("start", 1), ("start", 100), ("end", 0), ("start", 0)])  # one let in, not begun yet
def test_never_more_than_there_is_and_nothing_leaks(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        chunks = Chunks()
        for what, number in steps:
            if what == "start":
                chunks.start(number)
            elif number < len(chunks.tasks):
                if what == "end":
                    chunks.ends[number].set()
                else:
                    chunks.tasks[number].cancel()
            if number % 3:
                await settled()
        await chunks.end()
        assert chunks.peak <= MOST
        assert chunks.begun == sorted(chunks.begun), "first come, first served"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5), chunks.held.room(MOST):
                return  # all of it is free again
        raise AssertionError("bytes were not given back")

    asyncio.run(run())
