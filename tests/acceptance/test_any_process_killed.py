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
# A session may have one mail behind its dot and the next begun behind that; and outcomes are written
# together, 32 rows at most: what a killed worker knew and had not written is uncertain, not repeated.
UNCERTAIN = 2 * SESSIONS + 32


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
    with house(tmp_path) as home:
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
        assert states["uncertain"] <= UNCERTAIN
        assert sum(received.values()) - len(received) <= SESSIONS
