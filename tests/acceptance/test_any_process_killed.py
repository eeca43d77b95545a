"""SIGKILL of any one process during a run of 5,000 jobs: restored, nothing lost, at most the mails that were
between final dot and recorded result twice (or uncertain)."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from mailweir.contracts.ids import format_id
from tests.acceptance.house import MAILWEIR, STATE_SERVER, House, house

JOBS = 5_000
SESSIONS = 3 * 10  # providers x connections: mails that may be behind their final dot at once
UNWRITTEN = 32  # setting worker.unwritten: with so many outcomes not committed no mail begins
# What a killed worker leaves uncertain, and why no more. A mail is marked when its commands are written (not
# when it is only told that it may go), so marked are: one mail of a session behind its final dot and one begun
# behind that; and those whose answer the worker knew and had not committed, at most UNWRITTEN when the last
# mail began. The reconciler counts only jobs still *sending*: one whose outcome is committed is none of them,
# though its mark stays until its chunk ends. All but those begun are really out.
UNCERTAIN = 2 * SESSIONS + UNWRITTEN


def feed(home: House) -> subprocess.Popen[bytes]:
    domains = ("gmail.com", "outlook.com", "yahoo.com")
    rows = "".join(f"user{i}@{domains[i % 3]},{i}\n" for i in range(JOBS))
    (home.data / "list.csv").write_text("email,number\n" + rows)
    template = home.data / "template"
    template.mkdir()
    (template / "subject.txt").write_text("Number {{ number }}\n")
    (template / "body.txt").write_text("Hello number {{ number }}\n")
    return subprocess.Popen(
        [*MAILWEIR, "send", "-f", "news@acme.example", "--csv", str(home.data / "list.csv")]
        + ["--template", str(template), "--bucket", "bulk", "-o", "json"],
        env=dict(home.env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "process",
    [
        "run worker --queues marketing",
        "run router --buckets marketing",
        "run web",
        STATE_SERVER,
        "run ingress",
        "run reputation",
    ],
)
def test_any_process_killed(process: str, tmp_path: Path) -> None:
    with house(tmp_path, env={"MAILWEIR_WORKER__UNWRITTEN": str(UNWRITTEN)}) as home:
        feeder = feed(home)
        home.wait("the first mails", lambda: len(home.witness()) > 300)
        before = home.kill(process)
        _, err = feeder.communicate(timeout=120)
        assert feeder.returncode == 0, err.decode()
        home.wait("the process' return", lambda: bool(set(home.pids(process)) - {before}))
        states = home.wait_ended(JOBS, longest=180)

        received = Counter(record["ref"] for record in home.witness())
        with home.database().read() as conn:
            rows = conn.exec_driver_sql("SELECT id, state FROM jobs").all()
        assert len(rows) == JOBS
        sent = {format_id(row.id) for row in rows if row.state == "sent"}
        assert not sent - received.keys(), "called sent, and nobody has them"
        assert states["sent"] + states["uncertain"] == JOBS, states
        doubtful = {format_id(row.id) for row in rows if row.state == "uncertain"}
        print(
            f"uncertain {len(doubtful)}, of which a provider has {len(doubtful & received.keys())}"
        )
        assert len(doubtful) <= UNCERTAIN
        assert len(doubtful - received.keys()) <= SESSIONS, "marked, and nothing of it was sent"
        assert sum(received.values()) - len(received) <= SESSIONS
