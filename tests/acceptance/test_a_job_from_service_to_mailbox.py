"""A service publishes, a mailbox receives, and everybody can see how it went."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.acceptance.house import house


def test_a_job_from_service_to_mailbox(tmp_path: Path) -> None:
    with house(tmp_path) as home:
        (job,) = home.send(["jane@gmail.com"])
        home.wait_ended(1)
        assert home.state_of(job) == "sent"
        (record,) = home.witness()
        assert record["ref"] == job
        assert record["recipient"] == "jane@gmail.com"

        trace = json.loads(home.run("trace", job, "-o", "json").stdout)
        assert [entry["what"] for entry in trace["timeline"]] == ["accepted", "routed", "sent"]
        talk = trace["timeline"][-1]["conversation"]["steps"]
        assert any("250" in text for _, direction, text in talk if direction == "<")
        assert "jane" not in json.dumps(trace)

        # an unknown mailbox bounces, is suppressed within a second, and the next mail is refused
        (unknown,) = home.send(["nouser1@outlook.com"])
        home.wait_ended(2)
        assert home.state_of(unknown) == "bounced"
        home.wait(
            "the suppression",
            lambda: home.run("suppress", "check", "nouser1@outlook.com").returncode == 4,
        )
        (again,) = home.send(["NoUser1@Outlook.com"])
        home.wait_ended(3)
        assert home.state_of(again) == "refused"
        assert len(home.witness()) == 1

        status = json.loads(home.run("status", "-o", "json").stdout)
        assert status["redis"] == "ok"
        assert {"transactional"} <= {q for w in status["workers"] for q in w["queues"]}
        queues = json.loads(home.run("queues", "-o", "json").stdout)
        assert [row["queue"] for row in queues["queues"]] == [
            "transactional",
            "marketing",
            "marketing.throttled",
            "bulk",
            "bulk.throttled",
            "ingress",
        ]
        files = list((home.data / "logs").glob("worker*.log"))
        assert len(files) == 2
        for file in files:
            home.wait(
                f"the beginning in {file.name}", lambda f=file: '"worker ready"' in f.read_text()
            )  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        logs = [file.read_text() for file in files]
        assert not any("jane" in log.lower() for log in logs)
    ended = (home.data / "logs" / "worker-transactional.log").read_text()
    assert '"worked"' in ended, "and what it did"
    assert '"worker stopped"' in ended


def test_what_up_prints_can_be_typed(tmp_path: Path) -> None:
    with house(tmp_path) as home:
        home.wait("the hints", lambda: "Ctrl-C" in (home.data / "up.log").read_text())
        said = (home.data / "up.log").read_text().partition("another terminal:\n")[2]
        typed = [line.strip() for line in said.splitlines() if line.startswith("    ")]
        assert len(typed) == 4

        def type_in(*lines: str) -> str:
            # another terminal knows nothing of the stack but what was printed
            env = {k: v for k, v in os.environ.items() if not k.startswith("MAILWEIR_")}
            script = "set -e\n" + "\n".join(lines)
            done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, timeout=90)
            assert done.returncode == 0, done.stderr.decode()
            return done.stdout.decode()

        setting, send, trace, look = typed
        job = type_in(setting, send).split()[-2]
        home.wait_settled([job])
        assert ": sent" in type_in(setting, trace.replace("JOB", job))
        assert "transactional" in type_in(setting, look)
