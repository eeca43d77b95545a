"""All of Redis is wiped in the middle: no accepted job lost, nobody suppressed mailed, no limit exceeded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.acceptance.house import POLICY, house
from tests.acceptance.test_any_process_killed import JOBS, SESSIONS, feed

LIMITED = POLICY.replace(
    "transactional: {recipient_limit: none}", "transactional: {recipient_limit: 5/h}"
)


@pytest.mark.timeout(300)
def test_flushall(tmp_path: Path) -> None:
    with house(tmp_path, policy=LIMITED) as home:
        # before: one address is suppressed, one has used up its five an hour
        home.send(["nouser1@outlook.com"])
        limited = [home.send(["often@gmail.com"])[0] for _ in range(5)]
        home.wait_ended(6)
        assert {home.state_of(job) for job in limited} == {"sent"}
        home.wait(
            "the suppression",
            lambda: home.run("suppress", "check", "nouser1@outlook.com").returncode == 4,
        )

        feeder = feed(home)
        home.wait("the first mails", lambda: len(home.witness()) > 500)
        home.redis().flushall()
        (suppressed,) = home.send(["nouser1@outlook.com"])
        (sixth,) = home.send(["often@gmail.com"])
        _, err = feeder.communicate(timeout=120)
        assert feeder.returncode == 0, err.decode()
        home.wait_ended(6 + JOBS + 1, longest=180)

        assert home.state_of(suppressed) == "refused"
        assert home.state_of(sixth) == "held"
        received = Counter(record["ref"] for record in home.witness())
        recipients = Counter(record["recipient"] for record in home.witness())
        assert recipients["nouser1@outlook.com"] == 0
        assert recipients["often@gmail.com"] == 5
        states = home.states()
        assert states["sent"] + states["uncertain"] == JOBS + 5, states
        assert sum(received.values()) - len(received) <= SESSIONS
