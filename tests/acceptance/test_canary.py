"""Secrets and recipients that go through every failure leave no trace where operators look.

Known words stand in a relay's password, in API keys and in fifty addresses; afterwards every log, page,
answer and broker entry is searched for them.
"""

from __future__ import annotations

import base64
import csv
import json
import smtplib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from mailweir.contracts.ids import parse_id
from mailweir.plumbing import apikeys, keys
from mailweir.plumbing.redis import socket_path
from producer.broker import BrokerClient
from producer.message import Message
from tests.acceptance.house import LONGEST, POLICY, House, house

NAME = "zq7canary"  # in the local part of every address
PASSWORD = "zq7secret-of-the-relay"
ADDRESSES = 50
STOPPED = ("run worker --queues transactional", "run worker --queues marketing", "run ingress")


def relay_policy(port: str) -> str:
    """Marketing leaves by a relay that refuses our password."""
    return POLICY.replace(
        "pools:\n",
        f"  relay: {{kind: relay, host: 127.0.0.1, port: {port}, tls: opportunistic, "
        'buckets: [marketing], auth: {username: mailweir, secret: "env:CANARY_PASSWORD"}}\n'
        "pools:\n  relayed: {sources: [relay]}\n",
    ).replace(
        "  - name: rest\n",
        "  - name: relayed\n    match: {bucket: marketing}\n    action: {pool: relayed}\n  - name: rest\n",
    )


def needles(secrets: list[str]) -> list[bytes]:
    """The words, and the secrets as base64 would write them at any position."""
    found = [NAME.encode(), *(secret.encode() for secret in secrets)]
    for secret in secrets:
        for shift in range(3):
            text = base64.b64encode(b"\0" * shift + secret.encode())
            found.append(text[4:-8])
    return found


def state_of_redis(home: House, database: int, but: tuple[str, ...] = ()) -> Iterator[bytes]:
    """Everything in a database of the state server, message bodies decoded."""
    with redis.Redis(unix_socket_path=str(socket_path(home.data)), db=database) as client:
        for key in client.scan_iter():
            if key.decode() in but:
                continue
            yield key
            kind = client.type(key).decode()
            values: Any = {
                "none": lambda key: [],  # its time ran out between the two questions
                "string": lambda key: [client.get(key)],
                "list": lambda key: client.lrange(key, 0, -1),
                "hash": lambda key: [part for pair in client.hgetall(key).items() for part in pair],
                "set": client.smembers,
                "zset": lambda key: client.zrange(key, 0, -1),
                "stream": lambda key: [json.dumps(str(entry)) for entry in client.xrange(key)],
            }[kind](key)
            for value in values:
                raw = value.encode() if isinstance(value, str) else value
                yield raw
                yield from bodies(raw)


def bodies(raw: bytes) -> Iterator[bytes]:
    """The body of a kombu message, also of one in ``unacked``."""
    try:
        entry = json.loads(raw)
    except ValueError:
        return
    entry = entry[0] if isinstance(entry, list) and entry else entry
    if isinstance(entry, dict) and isinstance(entry.get("body"), str):
        yield base64.b64decode(entry["body"])


def go_wrong(home: House, key: str) -> list[str]:
    """Fifty addresses through failures; ids of the accepted jobs."""
    jobs: list[str] = []
    of = [f"{NAME}{i}" for i in range(ADDRESSES)]
    home.behave("outlook", outage=1.0)
    echo = f"{of[20]}@a.example"
    home.behave(
        "generic",
        replies={"rcpt": f"550 5.1.1 <{echo}>: {echo.upper()} unknown here, {of[20]} has left"},
    )
    home.behave("relay", extensions=["PIPELINING", "8BITMIME", "AUTH PLAIN LOGIN"])
    jobs += home.send([f"nouser-{name}@gmail.com" for name in of[:10]])  # bounce, are suppressed
    jobs += home.send([f"full-{name}@yahoo.com" for name in of[10:20]])  # deferred
    jobs += home.send([echo])  # the refusal names the address
    jobs += home.send([f"{name}@outlook.com" for name in of[21:30]])  # nobody answers
    jobs += home.send([f"{name}@gmail.com" for name in of[30:35]], "marketing")  # 535
    home.wait(
        "a try of each",
        lambda: (
            len(tried(home)) >= 10 + 10 + 1 + 1 + 1  # a sick path holds the others back
            and _replies(home) >= {"550", "452", "421", "535"}
        ),
    )
    home.behave("gmail", after_dot="reset")
    jobs += home.send([f"{name}@gmail.com" for name in of[35:38]])
    home.wait("uncertain ones", lambda: home.states()["uncertain"] >= 1)
    jobs += home.send([f"nouser-{of[0]}@gmail.com"])  # suppressed by now

    # refused at the doors
    url = f"http://127.0.0.1:{home.port}/v1/messages"
    body = {"from": "a@acme.example", "to": [f"{of[38]} x@gmail.com"], "subject": "s", "text": "x"}
    for token in (key, key + "x", key[:-1]):
        said = httpx.post(url, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=30)
        assert said.status_code in (401, 422)
    httpx.get(f"{url}/{of[39]}@gmail.com", headers={"Authorization": f"Bearer {key}"}, timeout=30)
    with smtplib.SMTP("127.0.0.1", home.smtp_port, timeout=30) as client:
        client.ehlo()
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("any", key + "x")
    with smtplib.SMTP("127.0.0.1", home.smtp_port, timeout=30) as client:
        client.login("any", key)
        client.mail("a@acme.example")
        assert client.rcpt(f"{of[40]}@x..com")[0] == 553
        assert client.rcpt(f"{of[41]}@gmail.com")[0] == 250
        assert (
            client.data(f"From: a@acme.example\r\nTo: {of[41]}@\r\nX Y: z\r\n\r\nhi\r\n")[0] == 550
        )
    for token in (key, key + "x"):
        with BrokerClient(home.broker, token) as broker:
            to = f"{of[42]}@x..com"
            broker.send(Message(from_="a@acme.example", to=to, subject="s", text="hi"))
    rows = home.data / "rows.csv"
    with rows.open("w") as file:
        csv.writer(file).writerows([["email"], [f"{of[43]}@x..com"], [f"{of[44]}@outlook.com"]])
    (home.data / "subject.txt").write_text("s\n")
    (home.data / "body.txt").write_text("hi\n")
    words = ("--csv", str(rows), "--template", str(home.data), "--data", str(home.data))
    assert home.run("send", "-f", "a@acme.example", *words).returncode == 4
    return jobs


def pool_of_next(home: House) -> str:
    """The pool that a marketing job sent now is routed to."""
    job = parse_id(home.send(["probe@gmail.com"], "marketing")[0])
    query = "SELECT pool FROM decisions WHERE job_id = ? AND pool IS NOT NULL"
    database = home.database()
    try:

        def pools() -> list[str]:
            with database.read() as conn:
                return [row[0] for row in conn.exec_driver_sql(query, (job,))]

        home.wait("a decision", lambda: bool(pools()))
        return pools()[0]
    finally:
        database.close()


def tried(home: House) -> list[int]:
    """Jobs with an attempt."""
    database = home.database()
    try:
        with database.read() as conn:
            rows = conn.exec_driver_sql("SELECT DISTINCT job_id FROM attempts").all()
    finally:
        database.close()
    return [int(row[0]) for row in rows]


def flower(home: House) -> Iterator[tuple[str, bytes]]:
    """What Flower shows."""
    home.wait_listening(home.flower_port)
    password = (home.data / "flower.password").read_text().strip()
    base = f"http://127.0.0.1:{home.flower_port}"
    for path in ("/api/workers?refresh=1", "/api/queues/length", "/api/tasks", "/broker", "/tasks"):
        said = httpx.get(base + path, auth=("admin", password), timeout=LONGEST)
        yield path, said.content


def where_people_look(home: House, jobs: list[str]) -> Iterator[tuple[str, bytes]]:
    """Every place searched, by name."""
    yield from flower(home)
    yield "/metrics", httpx.get(f"http://127.0.0.1:{home.port}/metrics", timeout=30).content
    for command in (
        ("status", "-o", "json"),
        ("queues", "-o", "json"),
        *(
            ("trace", job, "-o", "json")
            for job in (jobs[0], jobs[10], jobs[20], jobs[-9], jobs[-4])
        ),
        ("trace", jobs[20]),
    ):
        done = home.run(*command)
        assert done.returncode == 0, done.stderr
        yield " ".join(command), done.stdout + done.stderr

    with ExitStack() as stopped:
        for process in STOPPED:
            stopped.enter_context(home.standing_still(process))
        yield from where_mail_waits(home)
    for log in [*sorted((home.data / "logs").glob("*.log")), home.data / "up.log"]:
        yield log.name, log.read_bytes()


def where_mail_waits(home: House) -> Iterator[tuple[str, bytes]]:
    """The broker and the state server, with mail that nobody takes."""
    home.send([f"{NAME}{i}@yahoo.com" for i in range(45, 50)])
    with redis.Redis(unix_socket_path=str(socket_path(home.data)), db=1) as broker:
        chunks = keys.CELERY_PREFIX + "transactional"  # the stopped worker pops one of them
        home.wait("waiting chunks", lambda: broker.llen(chunks) > 0)
    with BrokerClient(home.broker, home.api_key) as client:
        client.send(Message(from_="a@acme.example", to=f"{NAME}@yahoo.com", subject="s", text="hi"))
    queue = keys.CELERY_PREFIX + keys.INGRESS
    yield "Celery's Redis", b"\n".join(state_of_redis(home, 1, but=(queue,)))
    yield "our Redis", b"\n".join(state_of_redis(home, 0))


def test_nobody_reads_a_secret_or_a_recipient(tmp_path: Path) -> None:
    env = {"CANARY_PASSWORD": PASSWORD, "MAILWEIR_LOG_LEVEL": "debug"}
    env["MAILWEIR_ROUTER__CHUNK_TRANSACTIONAL"] = "1"
    with house(tmp_path, env=env) as home:
        database = home.database()
        key = apikeys.create(database, tenant="default")
        database.close()
        mx_map = json.loads((home.simulator / "mx_map.json").read_text())
        port = mx_map["relay.example"][0].rpartition(":")[2]
        (home.data / "relay.yaml").write_text(relay_policy(port))
        done = home.run("policy", "apply", str(home.data / "relay.yaml"), "-m", "relay")
        assert done.returncode == 0, done.stderr
        home.wait("the router's turn to the policy", lambda: pool_of_next(home) == "relayed")

        jobs = go_wrong(home, key)
        places = dict(where_people_look(home, jobs))

        hits = [
            (place, needle, text[max(0, text.find(needle) - 150) : text.find(needle) + 60])
            for place, text in ((place, text.lower()) for place, text in places.items())
            for needle in (n.lower() for n in needles([PASSWORD, *(_secret(home, key))]))
            if needle in text
        ]
        assert not hits
        # the places are not empty, and the failures happened
        assert b"z***@a.example" in places[f"trace {jobs[20]} -o json"]
        assert b"workers.deliver" in places["Celery's Redis"]
        assert b"mw:suppression" in places["our Redis"]
        assert all(len(text) > 100 for place, text in places.items() if "worker-" in place)
        assert home.states()["bounced"] >= 10
        queues = json.loads(
            next(text for place, text in places.items() if place.startswith("queues"))
        )
        assert queues["queues"]
        assert _replies(home) >= {"550", "452", "421", "535"}


def _secret(home: House, key: str) -> list[str]:
    return [key.partition(".")[2], home.api_key.partition(".")[2]]


def _replies(home: House) -> set[str]:
    database = home.database()
    try:
        with database.read() as conn:
            rows = conn.exec_driver_sql("SELECT DISTINCT reply FROM attempts").all()
    finally:
        database.close()
    return {str(row[0])[:3] for row in rows}
