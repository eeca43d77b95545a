"""``mailweir send`` and ``mailweir keys`` as processes, against a real door."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests
from tests.services.door import Door, running_door

ROOT = Path(tests.__file__).parents[1]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with running_door(tmp_path_factory.mktemp("door")) as door:
        yield door


def mailweir(door: Door, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "console", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ
        | {
            "MAILWEIR_URL": door.url,
            "MAILWEIR_API_KEY": door.key,
            "MAILWEIR_DATA": str(door.settings.data),
        },
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_send_from_flags_and_standard_input(door: Door) -> None:
    done = mailweir(
        door,
        "send",
        "-f",
        "a@acme.test",
        "-t",
        "b@x.test",
        "-s",
        "Hi",
        "-o",
        "json",
        stdin="body\n",
    )
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    assert answer["jobs"][0]["status"] == "accepted"
    bad = mailweir(door, "send", "-f", "a@acme.test", "-t", "nobody", "--text", "x")
    assert (bad.returncode, bad.stdout) == (4, "")
    assert "to[0]" in bad.stderr
    assert mailweir(door, "send", "-t", "b@x.test", "--text", "x").returncode == 2


def test_send_eml_files(door: Door, tmp_path: Path) -> None:
    (tmp_path / "bad.eml").write_bytes(b"no header\n")
    files = sorted((ROOT / "examples" / "messages").glob("*.eml"))
    done = mailweir(door, "send", "-o", "json", "--eml", *files, tmp_path / "bad.eml")
    assert done.returncode == 4
    assert len(json.loads(done.stdout)) == len(files) == 3
    assert "bad.eml" in done.stderr


def test_mail_merge_reports_bad_lines_and_goes_on(door: Door, tmp_path: Path) -> None:
    rows = ["email,first_name,city,code"]
    rows += [f"u{i}@x.test,Ünal,Évora,C-{i}" for i in range(1200)]
    rows[3] = "not an address,A,B,C"
    rows[5] = "short@x.test,A"
    rows[7] = ",A,B,C"
    rows[9] = "U0@X.test,A,B,C"  # again
    text = (
        ("\n".join(rows) + "\n").encode().replace(b"u20@x.test,\xc3\x9cnal", b"u20@x.test,\xdcnal")
    )
    (tmp_path / "r.csv").write_bytes(text)
    command = (
        "send", "--csv", tmp_path / "r.csv", "--template", ROOT / "examples" / "newsletter",
        "-f", "Acme <news@acme.example>", "--bucket", "bulk", "--idempotency-key", "run-1", "-o", "json",
    )  # fmt: skip
    done = mailweir(door, *command)
    assert done.returncode == 4, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["accepted"], summary["duplicates"], summary["refused"]) == (1195, 1, 4)
    assert sorted(problem["line"] for problem in summary["problems"]) == [4, 6, 8, 22]
    for line in (4, 6, 8, 22):
        assert f"r.csv:{line}: " in done.stderr
    again = json.loads(mailweir(door, *command).stdout)
    assert again["messages"] == summary["messages"]
    assert door.spool.counts()["bulk"] == {"accepted": 1195}
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    assert mailweir(door, *command[:2], tmp_path / "no.csv", *command[3:]).returncode == 2


def test_keys(door: Door) -> None:
    made = mailweir(door, "keys", "create", "acme", "--scope", "send", "--domain", "acme.test")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    listed = mailweir(door, "keys", "list", "--tenant", "acme", "-o", "json")
    (row,) = json.loads(listed.stdout)
    assert (row["scopes"], row["domains"], row["state"]) == (["send"], ["acme.test"], "active")
    assert key.partition(".")[2] not in listed.stdout
    assert mailweir(door, "keys", "revoke", row["id"]).returncode == 0
    assert mailweir(door, "keys", "revoke", row["id"]).returncode == 3
    assert mailweir(door, "keys", "create", "acme", "--scope", "fly").returncode == 2


def test_nobody_there_is_a_temporary_failure(door: Door) -> None:
    done = mailweir(
        door, "send", "--url", "http://127.0.0.1:9", "-f", "a@b.cd", "-t", "b@x.test", "--text", "x"
    )
    assert done.returncode == 75
    assert "try again" in done.stderr
