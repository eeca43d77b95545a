"""Workers drained by SIGTERM again and again while they work: nothing lost, nothing sent twice."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

from tests.acceptance.house import house

JOBS = 2_000
RESTARTS = 5
WORKER = "run worker --queues marketing"
DOMAINS = ("gmail.com", "outlook.com", "yahoo.com")


def test_five_restarts_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    with house(tmp_path) as home:
        for provider in ("gmail", "outlook", "yahoo"):
            home.behave(provider, slow=0.01)  # so that mails are on their way when the signal comes
        home.wait("a worker", lambda: bool(home.pids(WORKER)))
        for start in range(0, JOBS, 1000):
            home.send([f"user{start + i}@{DOMAINS[i % 3]}" for i in range(1000)], "bulk")
        ended: set[int] = set()
        for mails in range(100, 100 + RESTARTS * 300, 300):
            home.wait_mails(mails)
            ended.add(home.kill(WORKER, signal.SIGTERM))
            home.wait("another worker", lambda: bool(set(home.pids(WORKER)) - ended))
            home.wait_beat("worker-bulk")
        states = home.wait_ended(JOBS, longest=150)
        assert len(ended) == RESTARTS
        assert states["sent"] == JOBS, states
        received = Counter(record["ref"] for record in home.witness())
        assert len(received) == JOBS
        assert set(received.values()) == {1}
        log = (home.data / "up.log").read_text()
        assert log.count("worker-bulk ended (exit 0)") == RESTARTS, log
