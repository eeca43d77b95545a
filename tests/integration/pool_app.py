"""The Celery application the pool's tests run in real worker processes.

Tasks write what they do as lines of the witness file named by ``MW_WITNESS``.
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from celery.exceptions import Ignore, Reject

from mailweir.plumbing.celery import make_app
from mailweir.plumbing.settings import load
from workers.pool import current_request, on_drain, on_loop_start, on_stopping

app = make_app(load())
_stuck = ThreadPoolExecutor(1)


def witness(line: str) -> None:
    """One line, written by one system call."""
    descriptor = os.open(os.environ["MW_WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


@on_loop_start
async def build() -> None:
    asyncio.get_running_loop()
    witness("built")


@on_stopping
def stopping() -> None:
    witness("stopping")


@on_drain
async def close(seconds: float) -> None:
    await asyncio.sleep(0)
    if os.environ.get("MW_HANG") == "loop":
        time.sleep(600)  # blocks the loop
    if os.environ.get("MW_HANG") == "thread":
        _stuck.submit(time.sleep, 600)  # the interpreter waits for it at its end
    witness(f"closed {seconds > 0}")


@app.task(name="workers.deliver")
async def deliver(order: dict[str, object]) -> None:
    """``{"say": name, "until": file}``: begin, wait for the file to exist, end."""
    say = order["say"]
    witness(f"begin {say}")
    if current_request()["id"] != order.get("id", current_request()["id"]):
        witness(f"wrong-context {say}")
    try:
        until = order.get("until")
        while until and not Path(str(until)).exists():
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        witness(f"cancelled {say}")
        if order.get("tidy"):
            witness(f"tidied {say}")
            return
        raise
    if order.get("raise") == "error":
        raise RuntimeError("as asked")
    if order.get("raise") == "reject":
        raise Reject("as asked", requeue=False)
    if order.get("raise") == "ignore":
        raise Ignore
    witness(f"end {say}")


@app.task(name="test.plain")
def plain(order: dict[str, object]) -> None:
    """A plain function, run in a thread."""
    witness(f"plain {order['say']}")


@app.task(name="test.limited", soft_time_limit=1, time_limit=2)
async def limited(order: dict[str, object]) -> None:
    """Runs into its soft limit, and, when it is deaf to that, into its hard one."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        witness(f"soft {order['say']}")
        if not order.get("deaf"):
            raise
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        witness(f"hard {order['say']}")
        raise
