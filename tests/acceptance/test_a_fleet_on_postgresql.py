"""The README's fleet: PostgreSQL and Redis, every process started by hand, jobs of all buckets arrive."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx

from simulator.control import send_command
from simulator.ports import free_port
from simulator.witness import read
from tests.acceptance.house import MAILWEIR, POLICY

PROCESSES = (
    ("run", "web"),
    ("run", "ingress"),
    ("run", "router", "--buckets", "transactional"),
    ("run", "router", "--buckets", "marketing,bulk"),
    ("run", "worker", "--queues", "transactional"),
    ("run", "worker", "--queues", "marketing,bulk"),
    ("run", "worker", "--queues", "marketing.throttled,bulk.throttled"),
    ("run", "reputation"),
)
JOBS = 60


def test_a_fleet_on_postgresql(tmp_path: Path, postgres_url: str, redis_url: str) -> None:
    port = free_port()
    folder = tmp_path / "simulator"
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("MAILWEIR_")},
        "MAILWEIR_DATA": str(tmp_path / "data"),
        "MAILWEIR_DATABASE__URL": postgres_url,
        "MAILWEIR_REDIS__URL": redis_url,
        "MAILWEIR_SECRET": "0123456789abcdef0123456789abcdef",
        "MAILWEIR_WEB__PORT": str(port),
        "MAILWEIR_SMTP__ALLOW_PRIVATE": "true",
        "MAILWEIR_WORKER__NICE": "0",  # a house of the suite runs beside it
    }
    started: list[subprocess.Popen[bytes]] = []

    def wait(what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 90
        while not ready():
            assert time.monotonic() < deadline, f"{what} did not come"
            time.sleep(0.05)

    def command(*words: str) -> str:
        done = subprocess.run(
            [*MAILWEIR, *words], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        started.append(
            subprocess.Popen([*MAILWEIR, "simulator", "run", "--folder", str(folder)], env=env)
        )
        wait("the simulator", (folder / "mx_map.json").exists)
        env["MAILWEIR_DNS__MX_MAP"] = json.dumps(json.loads((folder / "mx_map.json").read_text()))
        quiet = {"unknown": 0, "full": 0, "greylist": 0}
        for name in ("gmail", "outlook", "yahoo"):
            send_command(folder, {"do": "set", "provider": name, "behaviour": quiet})
        policy = tmp_path / "policy.yaml"
        policy.write_text(POLICY)

        command("db", "migrate")
        command("policy", "apply", str(policy), "-m", "first policy")
        key = json.loads(command("keys", "create", "shop", "-o", "json"))["key"]
        log = (tmp_path / "fleet.log").open("wb")
        started += [
            subprocess.Popen([*MAILWEIR, *words], env=env, stdout=log, stderr=log)
            for words in PROCESSES
        ]

        def ready() -> bool:
            try:
                url = f"http://127.0.0.1:{port}/health/ready"
                return httpx.get(url, timeout=2).status_code == 200
            except httpx.TransportError:
                return False

        wait("the door", ready)
        for i in range(JOBS):
            bucket = ("transactional", "marketing", "bulk")[i % 3]
            answer = httpx.post(
                f"http://127.0.0.1:{port}/v1/messages",
                headers={"Authorization": f"Bearer {key}"},
                json={
                    "from": "app@acme.example",
                    "to": [f"user{i}@{('gmail.com', 'outlook.com', 'yahoo.com')[i % 3]}"],
                    "subject": "hello",
                    "text": "hello\n",
                    "bucket": bucket,
                    "unsubscribe": bucket != "transactional",
                },
                timeout=30,
            )
            assert answer.status_code == 202, answer.text
        wait("all mails", lambda: len(list(read(folder / "witness.jsonl"))) >= JOBS)
        received = Counter(record["ref"] for record in read(folder / "witness.jsonl"))
        assert len(received) == JOBS
        assert set(received.values()) == {1}
        status = json.loads(command("status", "-o", "json"))
        assert status["spool"] == "postgresql"
        # the one of the throttled queues had nothing to do, and may be the last to start
        wait(
            "three workers",
            lambda: len(json.loads(command("status", "-o", "json"))["workers"]) == 3,
        )
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
