"""The client half against a real server on loopback, and what it does when there is none."""

from __future__ import annotations

import asyncio
import email.policy
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import httpx
import pytest

from mailweir.contracts.ids import parse_id
from producer import errors, wire
from producer.aclient import AsyncClient
from producer.client import Client
from producer.message import Address, Attachment, Message, Template
from tests.services.door import Door, running_door


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with running_door(tmp_path_factory.mktemp("door")) as door:
        yield door


@pytest.fixture
def client(door: Door) -> Iterator[Client]:
    with Client(door.url, door.key) as client:
        yield client


def message(**fields: Any) -> Message:
    plain: dict[str, Any] = {"from_": "Acme <a@acme.test>", "to": "b@x.test", "subject": "s"}
    return Message(**(plain | {"text": "hi"} | fields))


def test_send_get_cancel(client: Client) -> None:
    answer = client.send(
        message(
            to=["b@x.test", Address("c@y.test", "C")],
            send_at=datetime.now(UTC) + timedelta(hours=1),
        )
    )
    assert [job.status for job in answer.jobs] == ["accepted", "accepted"]
    assert client.get(answer.id).states == {"accepted": 2}
    assert client.get_job(answer.jobs[0].id).recipient == "b@x.test"
    assert client.cancel(answer.id).cancelled == 2


def test_email_message_is_sent_byte_for_byte(door: Door, client: Client) -> None:  # P9
    mail = EmailMessage()
    mail["From"] = "Ä <a@acme.test>"
    mail["To"] = "b@x.test"
    mail["Subject"] = "Grüße " * 20
    mail.set_content(".\n..dots\n" + "ü" * 200)
    answer = client.send(mail, bucket="transactional", tags=["t"])
    jobs = door.spool.jobs_of(parse_id(answer.id))
    content = door.spool.contents([jobs[0].content_id])[jobs[0].content_id]
    assert content.body == mail.as_bytes(policy=email.policy.SMTP)
    raw = (
        b"From: a@acme.test\r\nTo: b@x.test\r\nX-Long: "
        + b"word " * 100
        + b"\r\nSubject: =?utf-8?q?x?= y\r\n\r\n.\r\n"
    )
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    jobs = door.spool.jobs_of(parse_id(client.send(parsed).id))
    assert door.spool.contents([jobs[0].content_id])[jobs[0].content_id].body == raw


def test_injection_through_the_stdlib_is_refused(client: Client) -> None:  # CVE-2024-6923
    evil = email.message_from_bytes(
        b"From: a@acme.test\r\nTo: b@x.test\r\nSubject: =?utf-8?q?hi=0D=0ABcc=3A_evil=40x?=\r\n\r\nx",
        policy=email.policy.default,
    )
    with pytest.raises(errors.ValidationError):
        client.send(evil)


def test_typed_errors(door: Door, client: Client) -> None:
    with pytest.raises(errors.InvalidAddress) as caught:
        client.send(message(to=["b@x.test", "no"]))
    assert (caught.value.field, caught.value.status, caught.value.retryable) == (
        "to[1]",
        422,
        False,
    )
    assert caught.value.request_id
    with pytest.raises(errors.ValidationError):
        client.send(message(bucket="urgent"))
    with pytest.raises(errors.ValidationError):
        client.send(message(send_at=datetime(2030, 1, 1)))  # noqa: DTZ001 - naive on purpose
    with pytest.raises(errors.PayloadTooLarge):
        client.send(message(to=[f"u{i}@x.test" for i in range(1001)]))
    client.send(message(idempotency_key="k1"))
    with pytest.raises(errors.IdempotencyConflict):
        client.send(message(idempotency_key="k1", text="other"))
    with pytest.raises(errors.NotFound):
        client.get("nothing")
    with Client(door.url, "mw_no.key") as stranger, pytest.raises(errors.AuthError):
        stranger.send(message())


def test_send_many_streams(door: Door, client: Client) -> None:
    made = 0

    def stream() -> Iterator[Message]:
        nonlocal made
        for i in range(1203):
            made += 1
            yield message(to="no" if i == 700 else f"u{i}@x.test")

    results = client.send_many(stream(), idempotency_prefix="camp-1")
    first = next(results)
    assert made <= wire.BATCH + 1  # the second batch is not even made yet
    found = [first, *results]
    assert [r.index for r in found] == list(range(1203))
    assert [r.index for r in found if r.error] == [700]
    again = list(client.send_many(stream(), idempotency_prefix="camp-1"))
    assert all(r.accepted.duplicate for r in again if r.accepted)
    assert [r.accepted.id for r in again if r.accepted] == [
        r.accepted.id for r in found if r.accepted
    ]


def test_templates_and_attachments(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    file = Attachment.from_path(tmp_path / "a.pdf")
    assert file.content_type == "application/pdf"
    stored = client.store_template(
        Template("Hi {{ n }}", html="<b>{{ n }}</b>", attachments=[file])
    )
    answer = client.send(
        Message(
            from_="a@acme.test",
            to=[Address("b@x.test", variables={"n": 1})],
            template=stored.id,
            bucket="bulk",
            unsubscribe=True,
        )
    )
    assert len(answer.jobs) == 1


def test_a_lost_answer_is_asked_for_again_and_makes_no_second_message(door: Door) -> None:
    calls = 0

    class Losing(httpx.HTTPTransport):
        """Delivers every call and loses the first two answers."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal calls
            calls += 1
            response = super().handle_request(request)
            if calls <= 2:
                response.read()
                raise httpx.ReadError("lost", request=request)
            return response

    with Client(door.url, door.key, transport=Losing()) as client:
        before = sum(door.spool.counts()["transactional"].values())
        answer = client.send(message())
    assert (calls, answer.duplicate) == (3, True)
    assert sum(door.spool.counts()["transactional"].values()) == before + 1


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "ATTEMPTS", 2)
    with (
        Client("http://127.0.0.1:9", "mw_a.b") as client,
        pytest.raises(errors.QueueUnavailable) as caught,
    ):
        client.send(message())
    assert caught.value.retryable
    assert "mw_a" not in str(caught.value)


def test_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAILWEIR_URL", "MAILWEIR_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(errors.ConfigurationError):
        Client.from_env()
    monkeypatch.setenv("MAILWEIR_URL", "https://mw_a.b@mail.test/api/")
    assert wire.config() == ("https://mail.test/api", "mw_a.b")
    assert "mw_a" not in repr(wire.config())


async def test_async_client(door: Door) -> None:
    async with AsyncClient(door.url, door.key) as client:
        answers = await asyncio.gather(
            *(client.send(message(to=f"a{i}@x.test")) for i in range(20))
        )
        assert len({answer.id for answer in answers}) == 20
        assert (await client.get(answers[0].id)).states == {"accepted": 1}
        results = [r async for r in client.send_many(message(to=f"m{i}@x.test") for i in range(3))]
        assert [r.error for r in results] == [None] * 3
        assert (await client.cancel(answers[0].id)).cancelled == 1
