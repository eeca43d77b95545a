"""Bad input at every door of a running house: the stated outcome, nothing stored, everybody alive."""

from __future__ import annotations

import email
import email.policy
import json
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from typer.testing import CliRunner

from console.cli import build
from tests.acceptance import bad_input
from tests.acceptance.bad_input import SENDER, Answer, Entry
from tests.acceptance.house import House, house

ENTRIES = list(bad_input.corpus())
FAST = {"http": bad_input.http, "smtp": bad_input.smtp, "ingress": bad_input.ingress}
DOORS = ("run web", "run ingress", "run smtp")
MEMORY = 50 * 1024  # KiB a call that is too large may cost a door


def at(door: str) -> list[Entry]:
    """The entries with an outcome at a door."""
    return [entry for entry in ENTRIES if entry.expect.get(door) is not None]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("bad"), keep=True) as made:
        for entry in ENTRIES:
            if entry.suppressed:
                done = made.run("suppress", "add", entry.suppressed)
                assert done.returncode == 0, done.stderr
        yield made


@pytest.fixture(autouse=True)
def alive(home: House) -> Iterator[None]:
    """No input ends a door."""
    before = {door: home.pids(door) for door in DOORS}
    yield
    assert {door: home.pids(door) for door in DOORS} == before


def check(home: House, entry: Entry, door: str, ask: Callable[[], Answer]) -> None:
    expected = entry.expect[door]
    assert expected is not None
    before = bad_input.rows_of(home)
    begun = time.monotonic()
    answer = ask()
    if entry.within is not None:
        assert time.monotonic() - begun < entry.within
    assert answer.outcome.startswith(expected), answer.outcome
    if expected.startswith("accepted"):
        arrived(home, entry, answer.jobs)
    else:
        assert bad_input.rows_of(home) == before, "something was stored"


def arrived(home: House, entry: Entry, jobs: list[str]) -> None:
    """What the providers got: one mail to one recipient, or nothing where it is suppressed."""
    (job,) = jobs
    recipient = entry.wire["recipient"]
    state = "refused" if recipient is None else "sent"
    home.wait(f"{entry.id} {state}", lambda: home.state_of(job) == state)
    records = [record for record in home.witness() if record["ref"] == job]
    assert [record["recipient"] for record in records] == ([] if recipient is None else [recipient])
    for record in records:
        on_the_wire(entry, (home.simulator / "mail" / f"{record['sha256']}.eml").read_bytes())


def on_the_wire(entry: Entry, raw: bytes) -> None:
    for text in entry.wire.get("has", ()):
        assert text.encode() in raw
    for text in entry.wire.get("lacks", ()):
        assert text.encode() not in raw
    assert raw.endswith(entry.wire.get("ends", "").encode())
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    assert "Bcc" not in parsed
    assert "X" not in parsed
    for name, value in entry.wire.get("headers", {}).items():
        assert [str(found) for found in parsed.get_all(name, [])] == [value]
    if "filenames" in entry.wire:
        names = [part.get_filename() for part in parsed.iter_attachments()]
        assert names == entry.wire["filenames"]


def test_the_corpus_is_whole() -> None:
    assert {entry.id.partition("-")[0] for entry in ENTRIES} == {
        *(f"A{i}" for i in range(1, 31)),
        *(f"H{i}" for i in range(1, 21)),
    }
    assert all(any(entry.expect.values()) for entry in ENTRIES)


@pytest.mark.parametrize(
    ("door", "entry"),
    [pytest.param(d, e, id=f"{e.id}-{d}") for d in FAST for e in at(d)],
)
def test_a_bad_input(home: House, door: str, entry: Entry) -> None:
    check(home, entry, door, lambda: FAST[door](home, entry))


FIELDS = ("cc", "bcc", "reply_to", "from", "mail_from")


@pytest.mark.parametrize("field", FIELDS)
def test_a_bad_address_in_every_field(home: House, field: str) -> None:
    bad = [e for e in at("http") if e.address is not None and e.expect["http"] == "422 to[0]"]
    assert len(bad) > 20
    before = bad_input.rows_of(home)
    for entry in bad:
        if field == "mail_from" and entry.address == "":
            continue  # the null reverse-path, which a bounce has (RFC 5321 4.5.5)
        call = {"from": SENDER, "to": ["rcpt@x.com"], "subject": "s", "text": "hi"}
        listed = field in ("cc", "bcc", "reply_to")
        answer = home.post(call | {field: [entry.address] if listed else entry.address})
        assert answer.status_code == 422, entry.id
        assert answer.json()["field"] == (f"{field}[0]" if listed else field), entry.id
    assert bad_input.rows_of(home) == before


@pytest.mark.parametrize("entry", [pytest.param(e, id=e.id) for e in at("flags")])
def test_flags(home: House, entry: Entry) -> None:
    words = ["send", "-f", SENDER, "--text", "hi", "-o", "json", "--data", str(home.data)]
    own = ["-t", entry.address] if entry.address is not None else list(entry.flags or ())
    if "-t" not in own:
        own += ["-t", "rcpt@x.com"]

    def ask() -> Answer:
        done = CliRunner().invoke(build(), [*words, *own], env=dict(home.env))
        if not isinstance(done.exception, SystemExit | None):
            raise done.exception
        if done.exit_code:
            field = done.stderr.removeprefix("refused: ").partition(": ")[0]
            return Answer(f"{done.exit_code} {field}", [])
        (answer,) = json.loads(done.stdout)
        return Answer("accepted", [j["id"] for j in answer["jobs"] if j["status"] == "accepted"])

    check(home, entry, "flags", ask)


def test_csv(home: House, tmp_path: Path) -> None:
    text, lines = bad_input.csv_of(at("csv"))
    (tmp_path / "rows.csv").write_bytes(text)
    (tmp_path / "subject.txt").write_text("s {{ n }}\n")
    (tmp_path / "body.txt").write_text("hi\n")
    done = home.run(
        *("send", "-f", SENDER, "--csv", str(tmp_path / "rows.csv")),
        *("--template", str(tmp_path), "--data", str(home.data), "-o", "json"),
    )
    assert done.returncode == 4, done.stderr
    summary = json.loads(done.stdout)
    good = [entry for entry in lines.values() if entry.expect["csv"] == "accepted"]
    assert summary["accepted"] == len(good)
    assert {problem["line"] for problem in summary["problems"]} == {
        line for line, entry in lines.items() if entry not in good
    }
    assert all(
        f"rows.csv:{line}: " in done.stderr.decode() for line, e in lines.items() if e not in good
    )
    (message,) = summary["messages"]
    jobs = bad_input.jobs_of(home, message)
    home.wait_settled(jobs)
    got = sorted(record["recipient"] for record in home.witness() if record["ref"] in jobs)
    wanted = [entry.wire["recipient"] for entry in good]
    assert got == sorted(recipient for recipient in wanted if recipient is not None)


def test_eml(home: House, tmp_path: Path) -> None:
    entries = at("eml")
    for entry in entries:
        (tmp_path / f"{entry.id}.eml").write_bytes(entry.message())
    files = [str(tmp_path / f"{entry.id}.eml") for entry in entries]
    before = bad_input.rows_of(home)
    done = home.run("send", "--data", str(home.data), "-o", "json", "--eml", *files)
    assert done.returncode == 4, done.stderr
    lines = done.stderr.decode().splitlines()
    good = [entry for entry in entries if entry.expect["eml"] == "accepted"]
    for entry in entries:
        said = [line for line in lines if line.startswith(str(tmp_path / f"{entry.id}.eml: "))]
        if entry in good:
            assert not said
            continue
        field = str(entry.expect["eml"]).partition(" ")[2]
        assert [line.partition(".eml: ")[2].partition(":")[0] for line in said] == [field], entry.id
    answers = json.loads(done.stdout)
    assert len(answers) == len(good)
    assert bad_input.rows_of(home)[0] == before[0] + len(good)
    for entry, answer in zip(good, answers, strict=True):
        jobs = [job["id"] for job in answer["jobs"] if job["status"] == "accepted"]
        arrived(home, entry, jobs)


def test_a_call_too_large_costs_no_memory(home: House) -> None:
    entry = next(entry for entry in ENTRIES if entry.id == "A29")
    home.post(entry.fields())  # once, so that what is allocated for good is
    status = Path(f"/proc/{home.pids('run web')[0]}/status")

    def resident() -> int:
        return int(status.read_text().partition("VmRSS:")[2].split()[0])

    before = resident()
    for _ in range(10):
        assert home.post(entry.fields()).status_code == 413
    assert resident() - before < MEMORY


def test_what_is_dropped_is_logged(home: House) -> None:
    entry = next(entry for entry in ENTRIES if entry.id == "H12-bcc")
    log = home.data / "logs" / "smtp.log"

    def said() -> list[str]:
        # without the line that is being written
        lines = map(json.loads, log.read_text().rpartition("\n")[0].splitlines())
        return [line["names"] for line in lines if line["event"] == "headers dropped"]

    before = len(said())
    assert bad_input.smtp(home, entry).jobs
    home.wait("the line", lambda: len(said()) > before)
    assert said()[-1] == "bcc, return-path"
    assert "h12-hidden" not in log.read_text()
