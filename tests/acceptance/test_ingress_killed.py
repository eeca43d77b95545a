"""The ingress consumer of a running house dies with a message in its hands: every message arrives, once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from producer.broker import BrokerClient
from producer.message import Message
from tests.acceptance.house import house

TIMES = 3
EACH = 5
INGRESS = "run ingress"


@pytest.mark.timeout(240)
def test_ingress_killed_with_a_message_in_its_hands(tmp_path: Path) -> None:
    with (
        house(tmp_path, env={"MAILWEIR_INGRESS__LEASE": "2"}) as home,
        BrokerClient(home.broker, home.api_key) as client,
    ):
        sent = []
        for turn in range(TIMES):
            home.wait("the consumer", lambda: bool(home.pids(INGRESS)))
            pid = home.kill(INGRESS, signal.SIGSTOP)
            for number in range(EACH):
                sent.append(f"turn{turn}-{number}@gmail.com")
                client.send(Message(from_="a@acme.example", to=sent[-1], subject="s", text="hi"))
            os.kill(pid, signal.SIGKILL)
            states = home.wait_ended(len(sent))
            assert states["sent"] == len(sent), states
        assert Counter(record["recipient"] for record in home.witness()) == Counter(sent)
        assert sum(home.states().values()) == len(sent)
