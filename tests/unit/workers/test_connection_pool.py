"""Who waits for a connection is served in the order they came, and nobody waits while one is free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.delivery.connection import Connection, Dial
from workers.delivery.conversation import Handshake
from workers.delivery.pool import Place, Pool
from workers.delivery.smtp import PipelinedProtocol, SessionLost
from workers.delivery.types import Hop, TlsMode

PLACE = ("news-1", "gmail")
HERE, THERE = (Dial("news-1", Hop(host), TlsMode.NONE) for host in ("mx1", "mx2"))
IDLE = 3600.0


class Quiet:
    """Of a session all that a pool uses: alive until it is lost, and gone without a word."""

    transport = None
    on_lost: Callable[[], None] | None = None
    clean = True

    def fail(self, lost: object) -> None:
        self.clean = False

    def lose(self) -> None:
        """The remote hangs up."""
        self.clean = False
        if self.on_lost is not None:
            self.on_lost()

    def owe(self) -> None:
        """A reply."""

    def send(self, data: bytes) -> None:
        """Into the void."""

    async def reply(self, within: float) -> None:
        raise SessionLost("closed", "it hung up first")


def opened(dial: Dial = HERE) -> Connection:
    return Connection(dial, cast(PipelinedProtocol, Quiet()), Handshake(0.0))


class Asker:
    """Somebody who wants a connection, uses it, and brings it back when told."""

    def __init__(
        self, pool: Pool, limit: Callable[[], int], dial: Dial = HERE, place: Place = PLACE
    ) -> None:
        self._pool, self.limit, self.dial, self._place = pool, limit, dial, place
        self.has: Connection | None = None
        self.task = asyncio.ensure_future(self._enter())

    async def _enter(self) -> None:
        kept = await self._pool.enter(self._place, self.limit, self.dial)
        self.has = kept or opened(self.dial)

    def back(self) -> None:
        """Done with it; others may have it."""
        assert self.has is not None
        connection, self.has = self.has, None
        self._pool.put(self._place, self.dial, connection, IDLE)

    def close(self) -> None:
        """It broke: its place is left."""
        assert self.has is not None
        self.has = None
        self._pool.leave(self._place)


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


async def test_who_may_have_fewer_stands_in_nobodys_way() -> None:
    """Works of one place may know different limits: a relay's by the provider of each recipient."""
    pool = Pool()
    holders = [Asker(pool, lambda: 4) for _ in range(4)]
    await settle()
    small = Asker(pool, lambda: 1)
    await settle()
    large = [Asker(pool, lambda: 4) for _ in range(2)]
    await settle()
    for holder in holders[:2]:
        holder.close()
    await settle()
    assert [asker.has is not None for asker in (small, *large)] == [False, True, True]
    for asker in (*holders[2:], *large):
        asker.close()
    await settle()
    assert small.has is not None


@pytest.mark.parametrize("dial", [HERE, THERE], ids=["same host", "another"])
async def test_idle_ones_beyond_a_limit_that_fell_are_used_or_make_room(dial: Dial) -> None:
    pool, limit = Pool(), [3]
    holders = [Asker(pool, lambda: limit[0]) for _ in range(3)]
    await settle()
    limit[0] = 1
    for holder in holders:
        holder.back()
    comes = [Asker(pool, lambda: limit[0], dial) for _ in range(2)]
    await settle()
    assert comes[0].has is not None
    assert (comes[1].has is not None) == (dial is HERE), "an idle one is there for both"
    assert pool.open(*PLACE) == (3 if dial is HERE else 1)


async def test_places_that_share_a_host_count_for_themselves() -> None:
    """Domains with some of their MX in common are different sites."""
    pool, other = Pool(), ("news-1", "mx1+mx2")
    first = Asker(pool, lambda: 1)
    await settle()
    first.back()
    second = Asker(pool, lambda: 1, HERE, other)
    await settle()
    assert pool.held() == {PLACE: 1, other: 1}
    second.close()
    assert pool.held() == {PLACE: 1}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("come", "come there", "back", "close", "lose", "leave", "limit", "call", "settle")
        ),
        st.integers(0, 9),
    ),
    max_size=60,
)


@given(STEPS, st.booleans())
def test_in_order_and_nobody_for_nothing(steps: list[tuple[str, int]], mixed: bool) -> None:
    """Whatever happens in whatever order: nobody overtakes who is content with the same, and once all is
    quiet who still waits has nothing free; in the end every place is left."""
    asyncio.run(_law(steps, mixed))


async def _law(steps: list[tuple[str, int]], mixed: bool) -> None:
    """``mixed``: they want two hosts and know different limits."""
    pool, limit = Pool(), [2]
    came: list[Asker] = []

    def come(less: int, dial: Dial) -> None:
        came.append(Asker(pool, lambda: max(1, limit[0] - less), dial))

    def holding() -> list[Asker]:
        return [a for a in came if a.has is not None]

    def waits() -> list[Asker]:
        return [a for a in came if not a.task.done()]

    def checked() -> None:
        served = [n for n, a in enumerate(came) if a.task.done() and not a.task.cancelled()]
        still = [n for n, a in enumerate(came) if not a.task.done()]
        assert mixed or not still or all(n < min(still) for n in served)
        idle = {dial: pool.free(PLACE, 0, dial)[0] for dial in (HERE, THERE)}
        assert pool.open(*PLACE) == len(holding()) + sum(idle.values())
        for asker in waits():
            assert not idle[asker.dial]
            assert sum(idle.values()) + asker.limit() <= pool.open(*PLACE)

    for _ in range(4):
        come(0, HERE)
    await settle()
    for what, number in steps:
        if what == "come":
            come(number % 3 if mixed else 0, HERE)
        elif what == "come there" and mixed:
            come(number % 3, THERE)
        elif what == "limit":
            limit[0] = 1 + number % 4
            pool.call(PLACE)
        elif what == "call":
            pool.trim(PLACE, 1 + number % 4)
        elif what == "leave" and waits():
            waits()[number % len(waits())].task.cancel()
        elif what == "lose" and holding():
            asker = holding()[number % len(holding())]
            session = cast(Quiet, asker.has.protocol if asker.has else None)
            asker.back()
            session.lose()
        elif what in ("back", "close") and holding():
            cast(Any, getattr(holding()[number % len(holding())], what))()
        elif what == "settle":
            await settle()
            checked()
    await settle()
    checked()
    for asker in waits():
        asker.task.cancel()
    await settle()
    for asker in holding():
        asker.close()
    await pool.close()
    assert pool.held() == {}
