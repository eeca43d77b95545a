"""Bodies in files: a door killed while it writes them loses none, mixes up none, and every mail goes out with
the words it was given."""

from __future__ import annotations

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.acceptance.house import LONGEST, House, house

MAILS = 600
KILL_AT = (100, 250, 400)
TEXT = "mail {number}, line {line}, of this mail and no other\n"


def text_of(number: int) -> str:
    """Some 12 KB that no other mail has."""
    return "".join(TEXT.format(number=number, line=line) for line in range(250))


def submit(home: House, number: int) -> None:
    """Ask until a door answers, each time with the same key."""
    body = {
        "from": "news@acme.example",
        "to": [f"user{number}@{('gmail.com', 'outlook.com', 'yahoo.com')[number % 3]}"],
        "subject": f"number {number}",
        "text": text_of(number),
        "bucket": "bulk",
        "unsubscribe": True,
        "idempotency_key": f"mail-{number}",
    }
    answers: list[int] = []

    def answered() -> bool:
        try:
            answers.append(home.post(body).status_code)
        except httpx.TransportError:
            return False  # the door is dead
        return answers[-1] < 500

    home.wait("an answer of the door", answered)
    assert answers[-1] == 202


def test_a_door_killed_while_it_writes_bodies(tmp_path: Path) -> None:
    env = {"MAILWEIR_DATABASE__BODIES_FROM": "0", "MAILWEIR_DATABASE__BODIES_FILE": "1000000"}
    with house(tmp_path, env=env, keep=True) as home:
        killed: set[int] = set()
        reached = {number: threading.Event() for number in KILL_AT}

        def one(number: int) -> None:
            if number in reached:
                reached[number].set()
            submit(home, number)

        with ThreadPoolExecutor(16) as pool:
            done = [pool.submit(one, number) for number in range(MAILS)]
            for event in reached.values():
                assert event.wait(LONGEST)
                home.wait("a door that lives", lambda: bool(set(home.pids("run web")) - killed))
                killed.add(home.kill("run web"))
        assert [each.result() for each in done] == [None] * MAILS
        assert len(killed) == len(KILL_AT)
        states = home.wait_ended(MAILS)
        assert states == Counter({"sent": MAILS})
        received = home.witness()
        assert len(received) == len({record["ref"] for record in received}) == MAILS
        for record in received:
            number = int(re.findall(r"\d+", record["recipient"])[0])
            mail = (home.simulator / "mail" / f"{record['sha256']}.eml").read_bytes()
            assert text_of(number).encode().replace(b"\n", b"\r\n") in mail, number
        database = home.database()
        with database.read() as conn:
            inside = conn.exec_driver_sql("SELECT sum(length(body)) FROM contents").scalar_one()
            files = conn.exec_driver_sql("SELECT count(DISTINCT body_file) FROM contents")
            named = files.scalar_one()
        database.close()
        assert inside == 0
        assert len(list((home.data / "spool.db-bodies").iterdir())) >= named > 5
