"""How much mail a worker process holds at once: a chunk is read and composed whole."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import Gauge

HELD = Gauge("mailweir_held_bytes", "Bytes of mail in the chunks this process works on.")


class HeldBytes:
    """Room for ``most`` bytes, given in the order it was asked for. Belongs to one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._free = most
        self._entering = 0  # let in, and not begun before the loop's next turn: nobody passes them
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """While a chunk of ``size`` bytes is worked; one larger than all there is waits until it is alone."""
        need = min(size, self._most)
        if self._waiting or self._entering or need > self._free:
            await self._turn(need)
        else:
            self._free -= need
        HELD.set(self._most - self._free)
        try:
            yield
        finally:
            self._give(need)
            HELD.set(self._most - self._free)

    async def _turn(self, need: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((need, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._give(0)  # who stands behind may need less
            else:
                self._entering -= 1
                self._give(need)  # it had just been let in
            raise
        self._entering -= 1
        self._give(0)  # who came meanwhile

    def _give(self, freed: int) -> None:
        self._free += freed
        while self._waiting:
            need, turn = self._waiting[0]
            if not turn.cancelled() and need > self._free:
                return
            self._waiting.popleft()
            if not turn.cancelled():
                self._free -= need
                self._entering += 1
                turn.set_result(None)
