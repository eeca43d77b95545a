"""A broker, real ``celery worker`` processes with the asyncio pool, and what their tasks witnessed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mailweir.plumbing import celery as plumbing
from mailweir.plumbing.envelope import DELIVER_TASK, task_message
from mailweir.plumbing.publisher import Publisher
from mailweir.plumbing.settings import Settings

QUEUE = "bulk"
PATIENCE = 90.0  # seconds any wait may take: when to give up, no claim


def wait_for(what: Callable[[], object], why: str, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not what():
        assert time.monotonic() < end, f"not within {patience:g} s: {why}"
        time.sleep(0.02)


class Bench:
    """Settings, a broker and a witness file that workers of a test share."""

    def __init__(self, settings: Settings, folder: Path, env: Mapping[str, str]) -> None:
        self.settings = settings
        self.folder = folder
        self.env = env
        self.witness_file = folder / "witness"
        self.go = folder / "go"
        self.publisher = Publisher(settings)
        self.app = plumbing.make_app(settings)
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(
        self, concurrency: int = 4, drain: float = 25.0, **env: str
    ) -> subprocess.Popen[bytes]:
        number = len(self.workers)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "tests.integration.pool_app"),
                *plumbing.worker_arguments((QUEUE,), name=f"w{number}", concurrency=concurrency),
            ],
            env={
                **os.environ,
                "CELERY_CUSTOM_WORKER_POOL": "workers.pool:TaskPool",
                "MAILWEIR_DATA": str(self.folder),
                **self.env,
                "MAILWEIR_BROKER__VISIBILITY_TIMEOUT": str(self.settings.broker.visibility_timeout),
                "MAILWEIR_WORKER__DRAIN": str(drain),
                "MW_WITNESS": str(self.witness_file),
                **env,
            },
            stdout=(self.folder / f"worker{number}.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        self.workers.append(process)
        wait_for(
            lambda: self.seen().count("built") > number or process.poll() is not None,
            "worker up",
        )
        assert process.poll() is None, self.log(number)
        return process

    def log(self, number: int = 0) -> str:
        return (self.folder / f"worker{number}.log").read_text(errors="replace")

    def seen(self) -> list[str]:
        return self.witness_file.read_text().splitlines() if self.witness_file.exists() else []

    def send(self, say: str, task: str = DELIVER_TASK, **order: object) -> None:
        self.publisher.send([task_message(QUEUE, task, f"id-{say}", {"say": say, **order})])

    def until(self, line: str) -> None:
        wait_for(lambda: line in self.seen(), f"{line!r} in {self.seen()}")

    def empty(self) -> bool:
        return self.publisher.depths([QUEUE])[QUEUE] == 0 and self.publisher.unacked() == 0

    def close(self) -> None:
        for process in self.workers:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.publisher.close()
