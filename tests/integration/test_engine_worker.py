"""The engine inside a real ``celery worker``: published chunks are delivered, a stop loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from mailweir.contracts.lifecycle import State
from mailweir.plumbing import celery as plumbing
from mailweir.plumbing import keys
from mailweir.plumbing.publisher import Publisher
from tests.integration.engine_rig import Rig, policy_for, settings_for
from tests.services.postfix import SmtpSink

PATIENCE = 90.0  # seconds any wait may take: when to give up, no claim


def wait_for(what: Callable[[], object], why: str, seen: Callable[[], object] = str) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, f"not within {PATIENCE:g} s: {why}; {seen()}"
        time.sleep(0.05)


class Fleet:
    """Worker processes of an installation."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig = rig
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        settings = self.rig.settings
        assert settings.redis.url is not None
        number = len(self.processes)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "workers.tasks"),
                *plumbing.worker_arguments(("bulk",), name=f"w{number}", concurrency=4),
            ],
            env={
                **os.environ,
                "PYTHONFAULTHANDLER": "1",
                "CELERY_CUSTOM_WORKER_POOL": "workers.pool:TaskPool",
                "MAILWEIR_DATA": str(settings.data),
                "MAILWEIR_REDIS__URL": settings.redis.url.get_secret_value(),
                "MAILWEIR_DNS__MX_MAP": msgspec.json.encode(settings.dns.mx_map).decode(),
                "MAILWEIR_SMTP__HOSTNAME": "mx1.news.example",
            },
            stdout=(self.folder / f"worker{number}.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        self.processes.append(process)
        wait_for(lambda: self.beats() > number or process.poll() is not None, "worker up")
        assert process.poll() is None, self.log(number)
        return process

    def beats(self) -> int:
        return int(self.rig.client.hlen(keys.WORKERS))

    def log(self, number: int = 0) -> str:
        return (self.folder / f"worker{number}.log").read_text(errors="replace")

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGABRT)  # every thread's stack into its log
                    process.wait(10)
                    raise


@pytest.fixture
def fleet(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis, smtp_sink: SmtpSink
) -> Iterator[Fleet]:
    settings = settings_for(tmp_path, redis_url, {"*": [f"127.0.0.1:{smtp_sink.port}"]})
    fleet = Fleet(Rig.build(settings, policy_for("sink.example")), tmp_path)
    yield fleet
    fleet.stop()


def test_published_chunks_are_delivered_once(fleet: Fleet) -> None:
    rig = fleet.rig
    fleet.start()
    ids = rig.accept([f"u{i}@sink.example" for i in range(500)])
    publisher = Publisher(rig.settings)
    publisher.publish(rig.settle())
    wait_for(lambda: rig.states(ids) == {State.SENT: 500}, "all sent", lambda: rig.states(ids))
    attempts = rig.attempts()
    assert len(attempts) == 500
    assert {a["number"] for a in attempts} == {1}
    wait_for(lambda: publisher.unacked() == 0, "every chunk acknowledged")
    publisher.close()
    beat = msgspec.json.decode(next(iter(rig.client.hvals(keys.WORKERS))))
    assert beat["queues"] == ["bulk"]
    assert beat["sources"] == ["mx1", "mx2"]
    assert "u1@sink" not in fleet.log()


def test_a_warm_stop_in_the_middle_loses_no_job(fleet: Fleet) -> None:
    rig = fleet.rig
    first = fleet.start()
    ids = rig.accept([f"u{i}@sink.example" for i in range(2000)])
    publisher = Publisher(rig.settings)
    publisher.publish(rig.settle())
    wait_for(lambda: rig.states(ids)[State.SENT] >= 100, "some sent")
    first.send_signal(signal.SIGTERM)
    assert first.wait(40) == 0, fleet.log()
    assert fleet.beats() == 0, "it said goodbye"
    states = rig.states(ids)
    assert states[State.SENDING] == 0, states
    fleet.processes.clear()
    fleet.start()
    publisher.publish(rig.settle())
    wait_for(lambda: rig.states(ids) == {State.SENT: 2000}, "all sent", lambda: rig.states(ids))
    assert len(rig.attempts()) == 2000
    publisher.close()
