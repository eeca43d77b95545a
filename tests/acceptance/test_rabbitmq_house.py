"""The whole house on RabbitMQ as its broker: every bucket, the ingress queue, Flower, a worker's death."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import httpx

from producer.broker import BrokerClient
from producer.message import Message
from tests.acceptance.house import House, house
from tests.acceptance.test_any_process_killed import UNWRITTEN, uncertain_after_a_kill
from tests.services.rabbitmq import RabbitMQ

JOBS = {"transactional": 140, "marketing": 170, "bulk": 170}
PUBLISHED = 20
ALL = sum(JOBS.values()) + PUBLISHED
DOMAINS = ("gmail.com", "outlook.com", "yahoo.com")
WORKER = "run worker --queues marketing"
SLOW = 0.05  # real seconds before each reply: the mails last long enough to be interrupted


def depths(home: House) -> dict[str, int]:
    """What Flower shows."""
    password = (home.data / "flower.password").read_text().strip()
    try:
        answer = httpx.get(
            f"http://127.0.0.1:{home.flower_port}/api/queues/length",
            auth=("admin", password),
            timeout=30,
        )
    except httpx.TransportError:
        return {}  # it is starting
    if answer.status_code != 200:
        return {}
    return {row["name"]: row["messages"] for row in answer.json()["active_queues"]}


def test_rabbitmq_carries_the_whole_house(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    env = {
        "MAILWEIR_BROKER__URL": rabbitmq.url,
        "MAILWEIR_BROKER__MANAGEMENT": rabbitmq.management,
        "MAILWEIR_ROUTER__CHUNK": "5",  # many chunks, so that some wait in the broker
        "MAILWEIR_WORKER__LEASE": "6",
        "MAILWEIR_WORKER__UNWRITTEN": str(UNWRITTEN),
    }
    with house(tmp_path, env=env) as home:
        for provider in ("gmail", "outlook", "yahoo"):
            home.behave(provider, slow=SLOW)
        home.wait("Flower", lambda: bool(depths(home)))
        home.wait_beat("worker-bulk")
        with home.standing_still(WORKER):
            for bucket, count in JOBS.items():
                home.send([f"{bucket}{i}@{DOMAINS[i % 3]}" for i in range(count)], bucket)
            with BrokerClient(home.broker, home.api_key) as client:
                for i in range(PUBLISHED):
                    to = f"published{i}@{DOMAINS[i % 3]}"
                    client.send(Message(from_="a@acme.example", to=to, subject="s", text="hi"))
            home.wait("the waiting chunks in Flower", lambda: depths(home).get("marketing", 0) > 0)
            home.wait("the waiting chunks in Flower", lambda: depths(home).get("bulk", 0) > 0)
            assert set(depths(home)) == {
                "transactional",
                "marketing",
                "marketing.throttled",
                "bulk",
                "bulk.throttled",
                "ingress",
            }
            home.wait_ended(JOBS["transactional"] + PUBLISHED)

        home.wait_mails(JOBS["transactional"] + PUBLISHED + 40)
        killed = home.kill(WORKER)
        assert home.states()["sent"] < ALL, "in the middle"
        states = home.wait_ended(ALL, longest=120)
        assert set(home.pids(WORKER)) - {killed}
        received = Counter(record["ref"] for record in home.witness())
        assert states["sent"] + states["uncertain"] == ALL, states
        assert len(received) >= ALL - len(uncertain_after_a_kill(home))
        assert set(received.values()) == {1}, "received twice"
        home.wait("empty queues in Flower", lambda: set(depths(home).values()) == {0})
