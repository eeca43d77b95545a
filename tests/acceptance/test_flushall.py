"""All of Redis is wiped in the middle: no accepted job lost, nobody suppressed mailed, no limit exceeded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.acceptance.house import POLICY, house
from tests.acceptance.test_any_process_killed import JOBS, feed

AN_HOUR = 5  # mails to one address
A_DAY = 60  # mails of the capped campaign
CONNECTIONS = 10  # to its provider
UNWRITTEN = 32  # setting worker.unwritten
# docs/delivering.md, "A lost Redis": out when the attempts were counted, and not among them
BOUND = 2 * CONNECTIONS + UNWRITTEN
LIMITED = POLICY.replace(
    "transactional: {recipient_limit: none}", f"transactional: {{recipient_limit: {AN_HOUR}/h}}"
).replace(
    "  - name: rest",
    f"""  - name: capped
    match: {{campaign: capped}}
    action: {{pool: news, daily_limit: {A_DAY}}}
  - name: rest""",
)
BUSY = [f"busy{i}@outlook.com" for i in range(20)]


def test_flushall(tmp_path: Path) -> None:
    env = {"MAILWEIR_WORKER__UNWRITTEN": str(UNWRITTEN)}
    with house(tmp_path, policy=LIMITED, env=env) as home:
        # before: one address is suppressed, one has used up its five an hour
        home.send(["nouser1@outlook.com"])
        limited = [home.send(["often@gmail.com"])[0] for _ in range(AN_HOUR)]
        home.wait_ended(1 + AN_HOUR)
        assert {home.state_of(job) for job in limited} == {"sent"}
        home.wait(
            "the suppression",
            lambda: home.run("suppress", "check", "nouser1@outlook.com").returncode == 4,
        )

        feeder = feed(home)
        home.wait("the first mails", lambda: len(home.witness()) > 500)
        capped = [f"capped{i}@yahoo.com" for i in range(3 * A_DAY)]
        home.send(capped, "marketing", campaign="capped")
        home.wait(
            "a part of the day's mails",
            lambda: sum(r["recipient"] in capped for r in home.witness()) > A_DAY // 4,
        )
        for _ in range(3):
            home.send(BUSY)
        home.redis().flushall()
        for _ in range(3):
            home.send(BUSY)
        (suppressed,) = home.send(["nouser1@outlook.com"])
        (sixth,) = home.send(["often@gmail.com"])
        _, err = feeder.communicate(timeout=120)
        assert feeder.returncode == 0, err.decode()
        moving = ("accepted", "due", "dispatched", "sending")
        home.wait("the rest", lambda: not any(home.states()[state] for state in moving), 180)

        assert home.state_of(suppressed) == "refused"
        assert home.state_of(sixth) == "held"
        received = Counter(record["ref"] for record in home.witness())
        assert set(received.values()) == {1}, "received twice"
        recipients = Counter(record["recipient"] for record in home.witness())
        assert recipients["nouser1@outlook.com"] == 0
        assert recipients["often@gmail.com"] == AN_HOUR
        assert [recipients[address] for address in BUSY] == [AN_HOUR] * len(BUSY)
        today = sum(recipients[address] for address in capped)
        print(f"capped: {today} of {A_DAY} a day")
        # tokens that a chunk gives back when others were told "tomorrow" wait for tomorrow's
        assert A_DAY * 0.8 <= today <= A_DAY + BOUND
        states = home.states()
        assert sum(states.values()) == JOBS + 2 + AN_HOUR + 1 + 3 * A_DAY + 6 * len(BUSY)
        assert states["sent"] == len(received), (
            "no session was cut: nothing is uncertain, nothing lost"
        )
