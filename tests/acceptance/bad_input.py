"""The bad-input corpus, and the doors it walks through: each asks a real process and says what came back."""

from __future__ import annotations

import base64
import csv
import io
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from mailweir.contracts.ids import format_id, parse_id
from producer.broker import BrokerClient
from producer.message import Attachment, Message
from tests.acceptance.house import House

CORPUS = Path(__file__).parents[1] / "data" / "bad_input.yaml"
SENDER = "a@acme.example"
_REPEAT = re.compile(r"\{([^{}]*)\*(\d+)\}")


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One bad input; see the head of the file."""

    id: str
    what: str
    source: str
    expect: dict[str, str | None] = {}
    address: str | None = None
    put: dict[str, Any] | None = None
    numbered: dict[str, int] = {}
    flags: list[str] | None = None
    raw: str | None = None
    rcpt: tuple[str, ...] = ("rcpt@x.com",)
    attach: list[str] = []
    suppressed: str | None = None
    within: float | None = None
    wire: dict[str, Any] = {}

    def fields(self) -> dict[str, Any]:
        """The JSON call."""
        call: dict[str, Any] = {"from": SENDER, "to": ["rcpt@x.com"], "subject": "s", "text": "hi"}
        if self.address is not None:
            call["to"] = [self.address]
        call |= self.put or {}
        for name, count in self.numbered.items():
            call[name] = (
                [f"{i}@x.com" for i in range(count)]
                if name == "to"
                else {f"X-{i}": "b" for i in range(count)}
            )
        return call

    def message(self) -> bytes:
        """The whole message."""
        text = self.raw
        if text is None:
            text = f"From: {SENDER}\nTo: {self.address}\nSubject: s\n\nhi\n"
        if "\r\n" not in text:
            text = text.replace("\n", "\r\n")
        return text.encode("utf-8" if self.address is not None else "latin-1")


def expand(value: Any) -> Any:
    """``{x*65}`` written out, everywhere."""
    if isinstance(value, str):
        return _REPEAT.sub(lambda m: m[1] * int(m[2]), value)
    if isinstance(value, list):
        return [expand(item) for item in value]
    if isinstance(value, dict):
        return {expand(key): expand(item) for key, item in value.items()}
    return value


def corpus() -> Iterator[Entry]:
    """Every entry, with the outcomes of the address entries filled in."""
    document = yaml.safe_load(CORPUS.read_text(encoding="utf-8"))
    usual = document["refused_address"]
    for raw in document["entries"]:
        entry = msgspec.convert(expand(raw), Entry)
        if entry.address is not None:
            entry = msgspec.structs.replace(entry, expect={**usual, **entry.expect})
        yield entry


class Answer(NamedTuple):
    """What a door said: the outcome as the corpus writes it, and the jobs it accepted."""

    outcome: str
    jobs: list[str]


def http(home: House, entry: Entry) -> Answer:
    """The HTTP door."""
    files = [
        {"filename": name, "content": base64.b64encode(b"x").decode()} for name in entry.attach
    ]
    answer = home.post(entry.fields() | ({"attachments": files} if files else {}))
    body = answer.json()
    if answer.status_code != 202:
        assert answer.headers["content-type"] == "application/problem+json"
        return Answer(f"{answer.status_code} {body['field']}", [])
    accepted = [job for job in body["jobs"] if job["status"] == "accepted"]
    said = "accepted"
    if accepted[0].get("reason"):
        said += f" {accepted[0]['reason']}"
    repeated = sum(job["status"] == "duplicate" for job in body["jobs"])
    if repeated:
        said += f" {repeated} duplicates"
    return Answer(said, [job["id"] for job in accepted])


class SmtpSession:
    """A client that sends exactly these bytes."""

    def __init__(self, home: House) -> None:
        home.wait_listening(home.smtp_port)
        self._socket = socket.create_connection(("127.0.0.1", home.smtp_port), timeout=30)
        self._file = self._socket.makefile("rb")
        assert self.reply().startswith("220")
        token = base64.b64encode(b"\0any\0" + home.api_key.encode())
        for line in (b"EHLO test\r\n", b"AUTH PLAIN " + token + b"\r\n"):
            answer = self.ask(line)
        assert answer.startswith("235"), answer

    def reply(self) -> str:
        while True:
            line = self._file.readline()
            assert line, "the door closed the session"
            if line[3:4] != b"-":
                return line.decode("ascii").rstrip()

    def ask(self, data: bytes, lines: int = 1) -> str:
        """Send, read so many replies; the first one."""
        self._socket.sendall(data)
        answers = [self.reply() for _ in range(lines)]
        return answers[0]

    def close(self) -> None:
        """End the session as a client should; the door must still be in step."""
        assert self.ask(b"QUIT\r\n").startswith("221")
        self._file.close()
        self._socket.close()


def smtp(home: House, entry: Entry) -> Answer:
    """The SMTP door, byte by byte."""
    session = SmtpSession(home)
    assert session.ask(b"MAIL FROM:<" + SENDER.encode() + b">\r\n").startswith("250")
    rcpt = (entry.address,) if entry.address is not None else entry.rcpt
    for address in rcpt:
        answer = session.ask(f"RCPT TO:<{address}>\r\n".encode(), 1 + address.count("\n"))
    if answer.startswith("250"):
        assert session.ask(b"DATA\r\n").startswith("354")
        stuffed = re.sub(rb"(?m)^\.", b"..", entry.message())
        answer = session.ask(stuffed + b".\r\n")
    else:
        assert session.ask(b"DATA\r\n").startswith("503"), "a recipient was taken"
    session.close()
    if not answer.startswith("250"):
        return Answer(answer, [])
    return Answer("accepted", jobs_of(home, answer.rpartition(" ")[2]))


def ingress(home: House, entry: Entry) -> Answer:
    """The ingress queue: published, then accepted or a dead letter."""
    fields = entry.fields()
    fields["from_"] = fields.pop("from")
    files = [Attachment(name, b"x") for name in entry.attach]
    with BrokerClient(home.broker, home.api_key) as client:
        number = client.send(Message(attachments=files, **fields)).id
    found: list[Answer] = []

    def settled() -> bool:
        database = home.database()
        try:
            with database.read() as conn:
                dead = conn.exec_driver_sql(
                    "SELECT reason FROM dead_letters WHERE instr(body, ?) > 0", (number.encode(),)
                ).all()
                rows = conn.exec_driver_sql(
                    "SELECT id FROM messages WHERE idempotency_key = ?", (f"published:{number}",)
                ).all()
        finally:
            database.close()
        found.extend(Answer(str(row[0]), []) for row in dead)
        found.extend(Answer("accepted", jobs_of(home, format_id(row[0]))) for row in rows)
        return bool(found)

    home.wait("the ingress door's verdict", settled)
    return found[0]


def jobs_of(home: House, message: str) -> list[str]:
    """Ids of a message's jobs."""
    database = home.database()
    try:
        with database.read() as conn:
            rows = conn.exec_driver_sql(
                "SELECT id FROM jobs WHERE message_id = ?", (parse_id(message),)
            ).all()
    finally:
        database.close()
    return [format_id(row[0]) for row in rows]


def rows_of(home: House) -> tuple[int, int, int]:
    """How many messages, jobs, contents are stored."""
    database = home.database()
    try:
        with database.read() as conn:
            counts = [
                int(conn.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())
                for table in ("messages", "jobs", "contents")
            ]
    finally:
        database.close()
    return counts[0], counts[1], counts[2]


def csv_of(entries: list[Entry]) -> tuple[bytes, dict[int, Entry]]:
    """A CSV file with a row per entry, and the line each row starts on."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["email", "n"])
    lines: dict[int, Entry] = {}
    for entry in entries:
        lines[1 + out.getvalue().count("\n")] = entry
        writer.writerow([entry.address, entry.id])
    return out.getvalue().encode("utf-8"), lines
