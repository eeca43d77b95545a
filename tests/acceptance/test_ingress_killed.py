"""The ingress consumer of a running house dies with a message in its hands, 20 times: each arrives, once."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from pathlib import Path

import redis

from mailweir.plumbing import keys
from mailweir.plumbing.redis import socket_path
from producer.broker import BrokerClient
from producer.message import Message
from tests.acceptance.house import MAILWEIR, House, house
from tests.services.stopped import stop

TIMES = 20
INGRESS = "run ingress"


def at_work(home: House) -> list[int]:
    """Ingress consumers that live and have asked for messages."""
    with redis.Redis(unix_socket_path=str(socket_path(home.data)), db=1) as broker:
        names = broker.hkeys(keys.INGRESS_CONSUMERS)
    known = {int(name.decode().split(":")[1]) for name in names}
    return [pid for pid in home.pids(INGRESS) if pid in known]


def test_ingress_killed_with_a_message_in_its_hands(tmp_path: Path) -> None:
    with (
        house(tmp_path, env={"MAILWEIR_INGRESS__LEASE": "2"}) as home,
        BrokerClient(home.broker, home.api_key) as client,
    ):
        home.wait("a consumer at work", lambda: bool(at_work(home)))
        # consumers of our own, as in a fleet: the supervisor would pause longer and longer between two
        supervisor = home.processes[-1]
        stop(supervisor.pid)
        try:
            home.kill(INGRESS)
            to = [f"turn{turn}@gmail.com" for turn in range(TIMES)]
            for address in to:
                consumer = subprocess.Popen([*MAILWEIR, "run", "ingress"], env=dict(home.env))
                home.wait("it at work", lambda pid=consumer.pid: pid in at_work(home))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                stop(consumer.pid)
                client.send(Message(from_="a@acme.example", to=address, subject="s", text="hi"))
                consumer.kill()
                consumer.wait()
        finally:
            supervisor.send_signal(signal.SIGCONT)
        states = home.wait_ended(TIMES)
        assert states == {"sent": TIMES}
        assert Counter(record["recipient"] for record in home.witness()) == Counter(to)
