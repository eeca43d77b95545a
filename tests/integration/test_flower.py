"""Flower for real, without a single worker: all our queues, their depths, and nothing without a password."""

from __future__ import annotations

import base64
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import flower.api.tasks
import flower.views.broker
import httpx
import pytest

from console.flower import flower_password
from mailweir.contracts.ids import new_ids
from mailweir.contracts.job import Bucket
from mailweir.contracts.route import Chunk
from mailweir.plumbing import broker as broker_parts
from mailweir.plumbing import celery as plumbing
from mailweir.plumbing.publisher import Publisher
from mailweir.plumbing.settings import Settings
from simulator.ports import free_port
from tests.services.rabbitmq import RabbitMQ

PATIENCE = 90.0  # seconds any wait may take: when to give up, no claim
QUEUES = {
    "transactional",
    "marketing",
    "marketing.throttled",
    "bulk",
    "bulk.throttled",
    "ingress",
}


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Settings, dict[str, str]]]:
    if request.param == "redis":
        request.getfixturevalue("redis_clean")
        url = str(request.getfixturevalue("redis_url"))
        yield (
            Settings.model_validate({"data": tmp_path, "redis": {"url": url}}),
            {"MAILWEIR_REDIS__URL": url},
        )
        return
    server: RabbitMQ = request.getfixturevalue("rabbitmq")
    settings = Settings.model_validate({"data": tmp_path, "broker": {"url": server.url}})
    yield settings, {"MAILWEIR_BROKER__URL": server.url}
    with plumbing.make_app(settings).connection_for_write() as connection:
        for queue in (
            *broker_parts.declared_queues(settings, quorum=True),
            broker_parts.dead_queue(),
        ):
            queue(connection.default_channel).delete()


def test_all_queues_without_a_worker(
    broker: tuple[Settings, dict[str, str]], tmp_path: Path
) -> None:
    settings, env = broker
    port = free_port()
    publisher = Publisher(settings)
    publisher.publish([Chunk(id, Bucket.BULK, "bulk.throttled", "s", (1,)) for id in new_ids(3)])
    password = flower_password(settings)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c"),
                "from console.flower import run; from mailweir.plumbing.settings import load; run(load())",
            ],
            env={
                **os.environ,
                **env,
                "MAILWEIR_DATA": str(tmp_path),
                "MAILWEIR_FLOWER__PORT": str(port),
            },
            stdout=log,
            stderr=log,
        )
    try:
        base = f"http://127.0.0.1:{port}"
        end = time.monotonic() + PATIENCE
        while True:
            try:
                bare = httpx.get(f"{base}/api/queues/length", timeout=PATIENCE)
                break
            except httpx.TransportError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.1)
        assert bare.status_code == 401
        assert httpx.get(f"{base}/broker", timeout=PATIENCE).status_code == 401
        wrong = httpx.get(f"{base}/broker", auth=("admin", "x" + password), timeout=PATIENCE)
        assert wrong.status_code == 401

        answer = httpx.get(f"{base}/api/queues/length", auth=("admin", password), timeout=PATIENCE)
        assert answer.status_code == 200, (tmp_path / "log").read_text()
        lengths = {row["name"]: row["messages"] for row in answer.json()["active_queues"]}
        assert set(lengths) == QUEUES
        assert lengths == {**dict.fromkeys(QUEUES, 0), "bulk.throttled": 3}

        page = httpx.get(f"{base}/broker", auth=("admin", password), timeout=PATIENCE)
        assert page.status_code == 200
        assert all(f'<tr id="{name}">' in page.text for name in QUEUES)
        assert password not in page.text
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        publisher.close()
    said = (tmp_path / "log").read_text()
    assert password not in said
    assert base64.b64encode(f"admin:{password}".encode()).decode() not in said


def test_what_we_use_of_flower_is_still_there() -> None:
    """Guard: our views replace exactly these two methods of Flower 2.2's queue views."""
    assert version("flower").startswith("2.2"), "look at console/flower.py again"
    for view in (flower.views.broker.BrokerView, flower.api.tasks.GetQueueLengths):
        names = inspect.unwrap(view.get).__code__.co_names
        assert "get_broker" in names
        assert "get_active_queue_names" in names
        assert "queues" in names


def test_the_password_is_made_once_and_kept_private(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    password = flower_password(settings)
    assert len(password) >= 20
    assert flower_password(settings) == password
    assert (tmp_path / "flower.password").stat().st_mode & 0o777 == 0o600
