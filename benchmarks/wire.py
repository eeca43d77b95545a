"""The workers' wire to Redis beside redis-py's asyncio client: CPU a call. python -m benchmarks.wire

The calls are those of a chunk at the gate: the mark *in data* of two mails, and the question of the
suppression list for twenty (three keys each, in a transaction). A private server on a unix socket.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import redis.asyncio

from mailweir.plumbing.server import start
from mailweir.plumbing.settings import Settings
from mailweir.plumbing.wire import wire_of

CALLS = 5000
KEYS = [f"{number:016x}" for number in range(60)]


async def _cost(call: Callable[[], Awaitable[object]]) -> float:
    """Microseconds of this process' CPU a call, the best of three."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        for _ in range(CALLS):
            await call()
        best = min(best, (time.process_time() - began) / CALLS * 1e6)
    return round(best, 1)


async def measure(url: str) -> dict[str, float]:
    """By client and call."""
    client = redis.asyncio.Redis.from_url(url, socket_timeout=5, health_check_interval=30)
    wire = wire_of(client)

    async def question() -> object:
        async with client.pipeline(transaction=True) as pipe:
            pipe.mget("epoch", "ready")
            pipe.hmget("suppression", KEYS)
            return await pipe.execute()

    found = {
        "redis-py mark": await _cost(lambda: client.hset("m", mapping={"a": "1", "b": "2"})),
        "wire mark": await _cost(lambda: wire.run(("HSET", "m", "a", "1", "b", "2"))),
        "redis-py question": await _cost(question),
        "wire question": await _cost(
            lambda: wire.run(
                ("MULTI",), ("MGET", "epoch", "ready"), ("HMGET", "suppression", *KEYS), ("EXEC",)
            )
        ),
    }
    await wire.close()
    await client.aclose()
    return found


def main() -> None:
    """Print microseconds a call."""
    import uvloop

    with (
        tempfile.TemporaryDirectory(prefix="mw-") as name,
        start(Settings(data=Path(name))) as server,
    ):
        print(json.dumps(uvloop.run(measure(server.url)), indent=2))


if __name__ == "__main__":
    main()
