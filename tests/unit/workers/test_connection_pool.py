"""Who waits for a connection is served in the order they came, and nobody waits while one is free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from workers.delivery.connection import Connection, Dial
from workers.delivery.conversation import Handshake
from workers.delivery.pool import Pool
from workers.delivery.smtp import PipelinedProtocol
from workers.delivery.types import Hop, TlsMode

PLACE = ("news-1", "gmail")
HERE, THERE = (Dial("news-1", Hop(host), TlsMode.NONE) for host in ("mx1", "mx2"))
IDLE = 3600.0


class Quiet:
    """Of a session all that a pool looks at."""

    transport = None
    on_lost: Callable[[], None] | None = None
    clean = True

    def fail(self, lost: object) -> None:
        self.clean = False


def opened(dial: Dial = HERE) -> Connection:
    return Connection(dial, cast(PipelinedProtocol, Quiet()), Handshake(0.0))


class Asker:
    """Somebody who wants a connection, uses it, and brings it back when told."""

    def __init__(self, pool: Pool, limit: Callable[[], int], dial: Dial = HERE) -> None:
        self._pool, self._limit, self.dial = pool, limit, dial
        self.has: Connection | None = None
        self.task = asyncio.ensure_future(self._enter())

    async def _enter(self) -> None:
        self.has = await self._pool.enter(PLACE, self._limit, self.dial) or opened(self.dial)

    def back(self) -> None:
        """Done with it; others may have it."""
        assert self.has is not None
        connection, self.has = self.has, None
        self._pool.put(PLACE, self.dial, connection, IDLE)

    def close(self) -> None:
        """It broke: its place is left."""
        assert self.has is not None
        self.has = None
        self._pool.leave(PLACE)


async def settle() -> None:
    """Until nobody who can go on has not."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_comes_as_one_is_given_back_does_not_overtake() -> None:
    pool = Pool()
    holder = Asker(pool, lambda: 1)
    await settle()
    waiting = [Asker(pool, lambda: 1) for _ in range(3)]
    await settle()
    late = Asker(
        pool, lambda: 1
    )  # its first step comes after the call, before who was called looks
    holder.back()
    await settle()
    order = []
    while holders := [a for a in (*waiting, late) if a.has is not None]:
        [who] = holders
        order.append(who)
        who.back()
        await settle()
    assert order == [*waiting, late]


async def test_a_larger_limit_lets_in_who_waits_before_who_comes() -> None:
    pool, limit = Pool(), [1]
    Asker(pool, lambda: limit[0])
    await settle()
    first, second = (Asker(pool, lambda: limit[0]) for _ in range(2))
    await settle()
    limit[0] = 2
    third = Asker(pool, lambda: limit[0])  # nobody told the pool
    await settle()
    assert (first.has is not None, second.has, third.has) == (True, None, None)


async def test_an_idle_connection_to_another_host_makes_room() -> None:
    pool = Pool()
    holder = Asker(pool, lambda: 1, THERE)
    await settle()
    waits = Asker(pool, lambda: 1, HERE)
    await settle()
    assert waits.has is None
    holder.back()
    await settle()
    assert waits.has is not None
    assert pool.open(*PLACE) == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("come", "back", "close", "leave", "limit", "settle")), st.integers(0, 9)
    ),
    max_size=60,
)


@given(STEPS)
def test_in_order_and_nobody_for_nothing(steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: never more than were allowed, nobody overtakes, and once all is
    quiet who still waits has no connection free."""
    asyncio.run(_law(steps))


async def _law(steps: list[tuple[str, int]]) -> None:
    pool, limit = Pool(), [2]
    came = [Asker(pool, lambda: limit[0]) for _ in range(4)]
    await settle()
    most = limit[0]

    def holding() -> list[Asker]:
        return [a for a in came if a.has is not None]

    def waits() -> list[Asker]:
        return [a for a in came if not a.task.done()]

    def in_order() -> None:
        served = [
            number for number, a in enumerate(came) if a.task.done() and not a.task.cancelled()
        ]
        still = [number for number, a in enumerate(came) if not a.task.done()]
        assert not still or all(number < min(still) for number in served)

    for what, number in steps:
        if what == "come":
            came.append(Asker(pool, lambda: limit[0]))
        elif what == "limit":
            limit[0] = 1 + number % 4
            most = max(most, limit[0])
            pool.trim(PLACE, limit[0])
            pool.call(PLACE, limit[0])
        elif what == "leave" and waits():
            waits()[number % len(waits())].task.cancel()
        elif what in ("back", "close") and holding():
            cast(Any, getattr(holding()[number % len(holding())], what))()
        elif what == "settle":
            await settle()
            in_order()
        assert pool.open(*PLACE) <= most
    await settle()
    in_order()
    assert not waits() or len(holding()) >= limit[0]
    for asker in waits():
        asker.task.cancel()
    await settle()
    for asker in holding():
        asker.close()
    pool.trim(PLACE, 0)
    assert pool.open(*PLACE) == 0
