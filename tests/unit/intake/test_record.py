"""Feedback in the tables, over HTTP and by mail: once, for the right job, and never for a forger."""

from __future__ import annotations

import json
import mailbox
import smtplib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis
from sqlalchemy import select, update
from starlette.applications import Starlette
from starlette.testclient import TestClient

from mailweir.contracts.events import UNPROVEN, BounceClass, EventType, Feedback, Suppress
from mailweir.contracts.ids import format_id
from mailweir.contracts.lifecycle import State
from mailweir.mail import verp
from mailweir.plumbing import keys
from mailweir.plumbing.database import Database, migrate
from mailweir.spool.schema import attempts, feedback, jobs
from mailweir.spool.store import Spool
from reputation.intake.certificates import Certificates, CertificateUnavailable
from reputation.intake.http import IntakeDeps, path_token, routes, tenant_of
from reputation.intake.listener import MailIntake, drain_maildir, drain_mbox, listener
from reputation.intake.providers.base import Refused
from reputation.intake.record import ORPHAN, Recorder
from reputation.intake.webhook import MAX_BODY
from simulator.ports import free_port
from suppression.rules import Change, Subject, fed_back
from suppression.unsubscribe import make_token
from tests.contract.spool.helpers import accept, route, send
from tests.unit.intake.test_webhooks import mailgun_body

KEY = b"k" * 32
DSN = Path(__file__).parents[2] / "data" / "dsn"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'spool.db'}"
    else:
        make: Callable[..., str] = request.getfixturevalue("postgres_new")
        drop: Callable[[str], None] = request.getfixturevalue("postgres_drop")
        url = make()
    made = Database(url)
    migrate(made)
    yield made
    made.close()
    if request.param == "postgresql":
        drop(url)


@pytest.fixture
def spool(database: Database) -> Spool:
    return Spool(database)


@pytest.fixture
def recorder(database: Database, spool: Spool) -> Recorder:
    return Recorder(database, spool, None)


def sent_job(spool: Spool) -> int:
    (job_id,) = accept(spool)
    (chunk,) = route(spool)
    send(spool, chunk)
    return job_id


def event(kind: EventType, name: str = "1", **more: object) -> Feedback:
    base: dict[str, object] = {"recipient": "user0@gmail.com", "cls": BounceClass.NONE, **more}
    return Feedback(f"e:{name}", kind, "sendgrid", time.time(), **base)  # type: ignore[arg-type]  # passed on


def rows(database: Database) -> list[Feedback]:
    with database.read() as conn:
        found = conn.execute(select(feedback.c.body).order_by(feedback.c.id)).scalars().all()
    import msgspec

    return [msgspec.json.decode(body, type=Feedback) for body in found]


def marks(database: Database, job_id: int) -> set[str]:
    with database.read() as conn:
        return set(
            conn.execute(select(jobs.c.marks).where(jobs.c.id == job_id)).scalar_one().split()
        )


HARD = {
    "category": "invalid_recipient",
    "cls": BounceClass.HARD,
    "suppress": Suppress("recipient", None),
}


def test_a_late_bounce_overrules_sent_once(database, spool, recorder):
    job = sent_job(spool)
    bounce = event(EventType.BOUNCED, **HARD)
    assert recorder.record([bounce, bounce], b"raw", time.time()) == (1, 1, 0)
    assert recorder.record([bounce], b"raw", time.time()) == (0, 1, 0)
    assert spool.job(job).state == State.BOUNCED
    (kept,) = rows(database)
    assert kept.job_id == job
    assert kept.tenant == "acme"
    assert kept.suppress == Suppress("recipient", None)


def test_order_does_not_matter(database, spool, recorder):  # W17
    job = sent_job(spool)
    now = time.time()
    recorder.record([event(EventType.COMPLAINED, "c")], b"", now)
    recorder.record([event(EventType.DELIVERED, "d"), event(EventType.OPENED, "o")], b"", now)
    found = spool.job(job)
    assert found.state == State.SENT
    assert marks(database, job) == {"complained", "delivered", "opened"}


def test_an_address_never_mailed_is_never_suppressed(database, spool, recorder):  # W15, W16
    (waiting,) = accept(spool)  # accepted, but not sent to
    stranger = event(EventType.BOUNCED, "1", **{**HARD, "recipient": "stranger@example.net"})
    early = event(EventType.BOUNCED, "2", **HARD)
    angry = event(EventType.COMPLAINED, "3", recipient="stranger@example.net")
    assert recorder.record([stranger, early, angry], b"raw", time.time()) == (3, 0, 3)
    for kept in rows(database):
        assert kept.suppress is None
        assert kept.recipient is None
        assert kept.job_id is None
        assert ORPHAN in kept.tags
    assert spool.job(waiting).state == State.ACCEPTED


def test_another_tenants_path_finds_nothing(database, spool, recorder):  # M15
    job = sent_job(spool)
    done = recorder.record([event(EventType.BOUNCED, **HARD)], b"", time.time(), tenant="other")
    assert done.orphans == 1
    assert spool.job(job).state == State.SENT


# --- HTTP --------------------------------------------------------------------------------------
@pytest.fixture
def web(recorder, redis_url) -> Iterator[TestClient]:
    client = redis.Redis.from_url(redis_url)
    deps = IntakeDeps(
        recorder, KEY, lambda provider, tenant: "key-1", lambda url: b"", client=client
    )
    with TestClient(Starlette(routes=routes(deps))) as http:
        yield http
    client.close()


def path(provider: str = "mailgun", tenant: str = "acme") -> str:
    return f"/v1/feedback/{provider}/{path_token(KEY, provider, tenant)}"


def test_http(web, database, spool, redis_url):
    stamp = str(int(time.time()))
    token = f"tok-{time.time_ns()}"
    body = mailgun_body(stamp=stamp, token=token).replace(b"a@example.org", b"user0@gmail.com")
    job = sent_job(spool)
    assert (
        web.post(path(), content=body.replace(b'"signature": "', b'"signature": "0')).status_code
        == 401
    )
    assert rows(database) == []
    answer = web.post(path(), content=body, headers={"content-type": "text/plain"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["new"] == 1
    assert marks(database, job) == {"delivered"}
    for _ in range(20):  # W6
        assert web.post(path(), content=body).json()["new"] == 0
    assert len(rows(database)) == 1
    with redis.Redis.from_url(redis_url) as client:
        assert client.exists(keys.replay_guard("mailgun", token))


def test_http_refusals(web, database):
    good = mailgun_body(stamp=str(int(time.time())))
    assert web.post("/v1/feedback/mailgun/guess.0000", content=good).status_code == 404
    other = path_token(KEY, "sendgrid", "acme")
    assert web.post(f"/v1/feedback/mailgun/{other}", content=good).status_code == 404
    assert web.post(path("nobody"), content=good).status_code == 404
    assert web.get(path()).status_code == 405
    assert web.post(path(), content=b"x" * (MAX_BODY + 1)).status_code == 413
    assert web.post(path("postmark"), content=b"{}").status_code == 401
    bearer = {"authorization": "Bearer key-1"}
    assert web.post(path("postmark"), content=b"{", headers=bearer).status_code == 400
    assert rows(database) == []


def test_path_tokens():
    token = path_token(KEY, "ses", "größe/..")
    assert tenant_of(KEY, "ses", token) == "größe/.."
    assert tenant_of(b"other" * 8, "ses", token) is None
    for guess in ("", ".", "a.b", "\x00.\xff", token[:-1], token + "0"):
        assert tenant_of(KEY, "ses", guess) is None


# --- by mail -----------------------------------------------------------------------------------
def test_our_token_proves_a_report_and_nothing_else_does(database, spool, recorder):
    job = sent_job(spool)
    intake = MailIntake(recorder, [KEY])
    data = (DSN / "postfix-unknown.eml").read_bytes().replace(b"jo@example.net", b"user0@gmail.com")
    assert intake.take(data).orphans == 1  # backscatter: counted, nothing more
    assert spool.job(job).state == State.SENT
    token = verp.make(job, KEY, "bounce.example.com", time.time())
    changed = data.replace(b"Message-ID: <", b"Message-ID: <again", 1)
    assert intake.take(changed, token).orphans == 0
    assert spool.job(job).state == State.BOUNCED
    kept = rows(database)
    assert [row.suppress is not None for row in kept] == [False, True]


@pytest.mark.parametrize("lmtp", [False, True])
def test_listener(database, spool, recorder, lmtp):
    job = sent_job(spool)
    port = free_port()
    server = listener(MailIntake(recorder, [KEY]), "127.0.0.1", port, lmtp=lmtp)
    server.start()
    try:
        token = verp.make(job, KEY, "bounce.example.com", time.time())
        speak = smtplib.LMTP if lmtp else smtplib.SMTP
        with speak("127.0.0.1", port) as client:
            client.sendmail("", [token], (DSN / "qmail.eml").read_bytes())
            with pytest.raises(smtplib.SMTPException):
                client.sendmail("", [token], b"x" * (MAX_BODY + 100_000))
    finally:
        server.stop()
    assert spool.job(job).state == State.BOUNCED


def test_maildir_and_mbox(database, spool, recorder, tmp_path):
    job = sent_job(spool)
    token = verp.make(job, KEY, "bounce.example.com", time.time()).encode()
    data = (DSN / "exim.eml").read_bytes().replace(b"To: s@example.com", b"To: " + token, 1)
    intake = MailIntake(recorder, [KEY])
    box = mailbox.Maildir(tmp_path / "box")
    box.add(data)
    assert drain_maildir(intake, tmp_path / "box") == 1
    assert drain_maildir(intake, tmp_path / "box") == 0
    assert len(box) == 1
    assert spool.job(job).state == State.BOUNCED
    mbox = mailbox.mbox(tmp_path / "mbox")
    mbox.add(data)
    mbox.close()
    assert drain_mbox(intake, tmp_path / "mbox") == 1
    assert len(rows(database)) == 1  # the same mail again


# --- certificates ------------------------------------------------------------------------------
URL = "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0a1b.pem"


def test_certificates_are_fetched_once_and_only_from_sns():
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, content=b"pem")

    fetch = Certificates(
        httpx.Client(transport=httpx.MockTransport(answer), follow_redirects=False)
    )
    assert fetch(URL) == b"pem" == fetch(URL)
    assert asked == [URL]
    with pytest.raises(Refused):
        fetch("https://sns.evil.com/SimpleNotificationService-0a1b.pem")
    moved = httpx.MockTransport(
        lambda r: httpx.Response(302, headers={"location": "http://169.254.169.254"})
    )
    with pytest.raises(CertificateUnavailable):
        Certificates(httpx.Client(transport=moved, follow_redirects=False))(URL)


def test_webhook_command(tmp_path):
    import subprocess
    import sys

    body = tmp_path / "body.json"
    body.write_bytes(mailgun_body(stamp=str(int(time.time()))))
    secret = tmp_path / "secret"
    secret.write_text("key-1\n")
    root = Path(__file__).parents[3]
    program = (
        "import typer\nfrom console.commands import feedback\n"
        "app = typer.Typer()\nfeedback.register(app)\napp()"
    )

    def run(*more: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", program, "feedback", *more, "-o", "json"]
        return subprocess.run(command, capture_output=True, cwd="/", env={"PYTHONPATH": str(root)})

    webhook = ("webhook", "--provider", "mailgun", "--body", str(body))
    unverified = run(*webhook)
    assert unverified.returncode == 0, unverified.stderr
    assert b"verified: null" in unverified.stderr
    (shown,) = json.loads(unverified.stdout)
    assert {"type", "recipient", "category", "class", "status", "reply", "suppress"} <= set(shown)
    assert run(*webhook, "--secret-file", str(secret)).returncode == 0
    secret.write_text("wrong")
    refused = run(*webhook, "--secret-file", str(secret))
    assert refused.returncode == 4
    assert b"signature" in refused.stderr
    secret.write_text("\n")
    assert run(*webhook, "--secret-file", str(secret)).returncode == 4  # no secret is no leave
    assert run("webhook", "--provider", "nobody", "--body", str(body)).returncode == 2
    headers = tmp_path / "headers"
    for odd in ("{bad", '["a"]'):
        headers.write_text(odd)
        said = run(*webhook, "--headers", str(headers))
        assert (said.returncode, b"holds no headers" in said.stderr) == (2, True)
        assert b"Traceback" not in said.stderr
    body.write_text('{"signature": {}, "event-data": {"event": "stored"}}')
    quiet = run(*webhook)
    assert json.loads(quiet.stdout) == []
    assert b"nothing in it says what became of a mail" in quiet.stderr
    body.write_text("not json")
    assert run(*webhook).returncode == 1
    assert run("parse", "/nonexistent").returncode == 3
    parsed = run("parse", str(DSN / "qmail.eml"))
    assert json.loads(parsed.stdout)[0]["class"] == "hard"


# --- which job an event speaks of ---------------------------------------------------------------
SECRET = b"s" * 32


@pytest.fixture
def knowing(database: Database, spool: Spool) -> Recorder:
    return Recorder(database, spool, None, SECRET)


def two_to_one_person(spool: Spool) -> tuple[int, int]:
    first, second = sent_job(spool), sent_job(spool)
    assert first < second
    return first, second


def told(database: Database) -> Feedback:
    return rows(database)[-1]


def message_of(database: Database, job_id: int) -> str:
    with database.read() as conn:
        found = conn.execute(select(jobs.c.message_id).where(jobs.c.id == job_id)).scalar_one()
    return format_id(int(found))


def test_a_relay_names_the_older_of_two_mails_by_our_message_id(
    recorder: Recorder, database: Database, spool: Spool
) -> None:
    first, second = two_to_one_person(spool)
    recorder.record([event(EventType.COMPLAINED)], b"", time.time())
    assert told(database).job_id == second  # nothing tells them apart: the newest
    ours = (f"{message_of(database, first)}@example.com",)
    recorder.record([event(EventType.COMPLAINED, "2", message_ids=ours)], b"", time.time())
    assert told(database).job_id == first
    assert told(database).message_ids == ()


def test_a_relay_names_the_older_of_two_mails_by_its_own_id(
    recorder: Recorder, database: Database, spool: Spool
) -> None:
    first, second = two_to_one_person(spool)
    with database.write() as conn:
        for job_id, name in ((first, "0100018f-aaaa"), (second, "0100018f-bbbb")):
            reply = f"250 2.0.0 ses took it: {{'MessageId': '{name}'}}"
            found = update(attempts).where(attempts.c.job_id == job_id).values(reply=reply)
            assert conn.execute(found).rowcount == 1
    ids = ("0100018f-aaaa",)
    recorder.record([event(EventType.DELIVERED, message_ids=ids)], b"", time.time())
    assert told(database).job_id == first


def test_a_relay_that_names_nobody_is_understood_by_our_message_id(
    recorder: Recorder, database: Database, spool: Spool
) -> None:
    first, _ = two_to_one_person(spool)
    ids = (f"{message_of(database, first)}@example.com",)
    recorder.record(
        [event(EventType.COMPLAINED, recipient=None, message_ids=ids)], b"", time.time()
    )
    assert told(database).job_id == first


def redacted(job: str, message: str, link: str = "") -> bytes:
    more = f"List-Unsubscribe: <https://m.example.com/u/{link}>\n" if link else ""
    return (
        "From: fbl@example.org\nTo: fbl@example.com\nSubject: x\nMIME-Version: 1.0\n"
        'Content-Type: multipart/report; report-type=feedback-report; boundary="a"\n\n'
        "--a\nContent-Type: message/feedback-report\n\nFeedback-Type: abuse\nUser-Agent: X/1\n"
        "Version: 1\n\n--a\nContent-Type: message/rfc822\n\nFrom: news@example.com\nTo: [redacted]\n"
        f"Message-ID: <{message}@example.com>\nX-Mailweir-Ref: {job}\n{more}Subject: y\n\nz\n--a--\n"
    ).encode()


def test_a_redacted_complaint_finds_its_job_but_a_bare_reference_suppresses_nobody(
    knowing: Recorder, database: Database, spool: Spool
) -> None:
    job_id = sent_job(spool)
    intake = MailIntake(knowing, [KEY])
    message = message_of(database, job_id)
    intake.take(redacted(format_id(job_id), message))
    found = told(database)
    assert (found.job_id, found.type, found.suppress) == (job_id, EventType.COMPLAINED, None)
    assert UNPROVEN in found.tags
    assert fed_back(found, Subject("user0@gmail.com", "", "acme"), 1.0) == Change()
    again = redacted(format_id(job_id), message).replace(b"Subject: x", b"Subject: again")
    assert intake.take(again).duplicates == 1  # said twice, counted once


def test_the_unsubscribe_link_in_a_redacted_complaint_proves_the_job(
    knowing: Recorder, database: Database, spool: Spool
) -> None:
    job_id = sent_job(spool)
    with database.read() as conn:
        columns = (jobs.c.tenant, jobs.c.bucket, jobs.c.recipient_key)
        row = conn.execute(select(*columns).where(jobs.c.id == job_id)).one()
    link = make_token(SECRET, job_id, *row)
    intake = MailIntake(knowing, [KEY])
    intake.take(redacted("x", "y", link[:-1] + ("A" if link[-1] != "A" else "E")))
    assert told(database).job_id is None  # forged, and no reference
    intake.take(redacted("x", "z", link).replace(b"Subject: x", b"Subject: b"))
    found = told(database)
    assert (found.job_id, found.suppress, UNPROVEN in found.tags) == (
        job_id,
        Suppress("recipient", None),
        False,
    )


def test_an_unproven_bounce_moves_no_state(
    knowing: Recorder, database: Database, spool: Spool
) -> None:
    job_id = sent_job(spool)
    data = (DSN / "postfix-unknown.eml").read_bytes()
    head, _, rest = data.rpartition(b"Subject:")
    mail = head + b"X-Mailweir-Ref: " + format_id(job_id).encode() + b"\nSubject:" + rest
    MailIntake(knowing, [KEY]).take(mail)
    assert told(database).job_id == job_id
    job = spool.job(job_id)
    assert job is not None
    assert job.state == State.SENT


def test_odd_characters_of_one_event_do_not_lose_the_call(
    recorder: Recorder, database: Database, spool: Spool
) -> None:
    sent_job(spool)
    odd = "550 5.1.1 a\x00b \udce9 \x1b[31m"
    events = [
        event(EventType.BOUNCED, "1", reply=odd, tags=("x\x00y",), category="invalid_recipient"),
        event(EventType.DELIVERED, "2"),
    ]
    assert recorder.record(events, b"\x00raw", time.time()).new == 2
    first = rows(database)[0]
    assert first.reply is not None
    assert "\x00" not in first.reply


def test_a_report_with_bytes_of_no_charset_is_kept(
    knowing: Recorder, database: Database, spool: Spool
) -> None:
    job_id = sent_job(spool)
    data = (DSN / "postfix-unknown.eml").read_bytes()
    odd = data.replace(
        b"Diagnostic-Code: smtp;", b"Diagnostic-Code: smtp; \xe9\x00 =?x?q?\xe9=ff?="
    )
    assert odd != data
    envelope = verp.make(job_id, KEY, "bounce.example.com", time.time())
    assert MailIntake(knowing, [KEY]).take(odd, envelope).new == 1
    assert told(database).job_id == job_id
