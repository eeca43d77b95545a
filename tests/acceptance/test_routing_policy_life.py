"""A policy's life while mail flows: applied, refused, on trial, watched, taken back; no job is lost."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.acceptance.house import POLICY, House, house

BASE = POLICY.replace("news-1:", "news-2: {buckets: [marketing, bulk]}\n  news-1:")
OTHER = BASE.replace("sources: [news-1]", "sources: [news-2]")
IN_FORCE = 2.0  # real seconds; the clock runs at rate 1
TRIED = 800  # jobs that a canary is watched over
PER_CALL = 40


class Stream:
    """Mail that keeps coming."""

    def __init__(self, home: House) -> None:
        self.jobs: list[str] = []
        self._home = home
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        call = 0
        while not self._stop.is_set():
            recipients = [f"u{call}x{i}@gmail.com" for i in range(PER_CALL)]
            self.jobs += self._home.send(recipients, bucket="bulk")
            call += 1
            self._stop.wait(0.2)

    def stop(self) -> list[str]:
        self._stop.set()
        self._thread.join()
        return self.jobs


@contextmanager
def flowing(home: House) -> Iterator[Stream]:
    stream = Stream(home)
    try:
        yield stream
    finally:
        stream.stop()


def decided(home: House, since: float = 0.0) -> list[tuple[int, float, str]]:
    """(policy version, time, source) of the decisions after ``since``."""
    database = home.database()
    try:
        with database.read() as conn:
            rows = conn.exec_driver_sql(
                "SELECT policy_version, at, source FROM decisions "
                "WHERE at > ? AND outcome = 'routed' ORDER BY id",
                (since,),
            ).all()
        return [(int(v), float(at), str(s)) for v, at, s in rows]
    finally:
        database.close()


def change(home: House, *command: str) -> tuple[int, float]:
    """Run a command that makes a version; its number, and the time it returned."""
    done = home.run("policy", *command, "-o", "json")
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["version"]), time.time()


def in_force(home: House, version: int, at: float, source: str) -> None:
    """Two seconds after ``at`` every decision is by ``version``."""
    home.wait("decisions after the change", lambda: len(decided(home, at + IN_FORCE)) > 50)
    after = decided(home, at + IN_FORCE)
    assert {(v, s) for v, _, s in after} == {(version, source)}


def test_a_policy_changes_while_mail_flows(tmp_path: Path) -> None:
    other, bad = tmp_path / "other.yaml", tmp_path / "bad.yaml"
    other.write_text(OTHER)
    bad.write_text(OTHER.replace("pools:", "poools:"))
    line = OTHER.splitlines().index("pools:") + 1
    with house(tmp_path, policy=BASE) as home:
        with flowing(home) as stream:
            home.wait("the first decisions", lambda: len(decided(home)) > 20)
            assert {(v, s) for v, _, s in decided(home)} == {(1, "news-1")}

            # applied: in force within 2 s, without a restart
            version, at = change(home, "apply", str(other), "-m", "try news-2")
            in_force(home, version, at, "news-2")

            # a bad one is refused with its line, and the running one stays
            refused = home.run("policy", "apply", str(bad), "-m", "oops")
            assert refused.returncode == 4
            assert re.search(rf"bad\.yaml:{line}:.*poools", refused.stderr.decode())
            in_force(home, version, time.time(), "news-2")

            # taken back
            version, at = change(home, "rollback", "-m", "no better")
            in_force(home, version, at, "news-1")

            # on trial for a tenth of the jobs
            trial, at = change(home, "apply", str(other), "-m", "trial", "--canary", "10")
            since = at + IN_FORCE
            home.wait("jobs in the trial", lambda: len(decided(home, since)) >= TRIED)
            by = Counter((v, s) for v, _, s in decided(home, since))
            assert by.keys() == {(version, "news-1"), (trial, "news-2")}
            share = by[trial, "news-2"] / sum(by.values())
            assert 0.06 < share < 0.14, by  # four standard deviations

            # watched only: differences are logged, nothing goes another way
            version, at = change(home, "rollback", "-m", "end of trial")
            in_force(home, version, at, "news-1")
            _, at = change(home, "apply", str(other), "-m", "watch", "--shadow")
            in_force(home, version, at, "news-1")
        jobs = stream.jobs
        differences = [
            line
            for log in (home.data / "logs").glob("router*.log")
            for line in log.read_text().splitlines()
            if "shadow policy differs" in line
        ]
        assert differences
        assert all("news-1" in line and "news-2" in line for line in differences)
        assert not any("@gmail.com" in line for line in differences)

        # nothing was lost on the way, nothing was sent twice
        assert home.wait_ended(len(jobs), longest=240)["sent"] == len(jobs)
        assert Counter(record["ref"] for record in home.witness()) == Counter(jobs)

        history = json.loads(home.run("policy", "history", "-o", "json").stdout)
        assert [row["reason"] for row in history][:2] == [
            "watch",
            "rollback to version 3: end of trial",
        ]
