"""ESPs' HTTP APIs against servers written from their documentation, errors and all."""

from __future__ import annotations

import asyncio
import base64
import email
import email.policy
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.message import Message
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mailweir.contracts.policy import Auth, Source
from simulator.ports import free_port
from tests.integration.test_delivery_secrets import boto_signature
from tests.unit.delivery.sending import Sender, hop, mail, mails
from workers.delivery.http_api import judge, retry_after
from workers.delivery.types import Envelope, Result

DATA = (
    b"From: =?utf-8?q?J=C3=BCrgen?= <news@acme.test>\r\nTo: user1@d.test\r\nSubject: hi\r\n"
    b"Message-ID: <1@acme.test>\r\nDate: Mon, 2 Nov 2026 10:00:00 +0000\r\nX-Tag: a\r\n"
    b"List-Unsubscribe: <https://acme.test/u/1>\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\n'
    b"hello\r\n.dot\r\n--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>hell\xc3\xb6</p>\r\n"
    b"--b\r\nContent-Type: application/pdf\r\nContent-Disposition: attachment; filename=a.pdf\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nQUJD\r\n--b--\r\n"
)
Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """One path of an ESP; ``taken`` are the documents it accepted, ``script`` overrides the answers."""

    def __init__(self, path: str, take: Callable[[Request, bytes], Response]) -> None:
        self.taken: list[Any] = []
        self.script: list[Response | None] = []
        self.asked = 0
        self.take = take
        self.app = Starlette(routes=[Route(path, self._serve, methods=["POST"])])
        self.url = ""

    async def _serve(self, request: Request) -> Response:
        self.asked += 1
        body = await request.body()
        scripted = self.script.pop(0) if self.script else None
        return scripted or self.take(request, body)


@asynccontextmanager
async def serving(api: Api) -> AsyncIterator[Api]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(api.app, port=port, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    api.url = f"http://127.0.0.1:{port}"
    try:
        yield api
    finally:
        server.should_exit = True
        await task


def ses_api() -> Api:
    """POST /v2/email/outbound-emails: JSON with Content.Raw.Data in base64, SigV4."""

    def take(request: Request, body: bytes) -> Response:
        headers = dict(request.headers.items())
        expected = boto_signature("POST", str(request.url), headers, body, "ses")
        if headers["authorization"] != expected:
            return JSONResponse(
                {"message": "The request signature we calculated does not match"}, 403
            )
        document = json.loads(body)
        api.taken.append(
            (document["Destination"], base64.b64decode(document["Content"]["Raw"]["Data"]))
        )
        return JSONResponse({"MessageId": "0102-0304"})

    api = Api("/v2/email/outbound-emails", take)
    return api


def mailgun_api() -> Api:
    """POST /v3/{domain}/messages.mime: multipart form with ``to`` and the file ``message``."""

    def take(request: Request, body: bytes) -> Response:
        if request.headers["authorization"] != "Basic " + base64.b64encode(b"api:key-1").decode():
            return Response("Forbidden", 401)
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        form = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        boundary = f"--{form.get_boundary()}".encode()
        raw = next(p for p in body.split(boundary) if b'name="message"' in p)
        field = form.get_payload(0)
        assert isinstance(field, Message)
        api.taken.append((field.get_payload(), raw.split(b"\r\n\r\n", 1)[1][:-2]))
        return JSONResponse({"id": "<1@acme.test>", "message": "Queued. Thank you."})

    api = Api("/v3/acme.test/messages.mime", take)
    return api


def sendgrid_api() -> Api:
    """POST /v3/mail/send: JSON, 202 and no body."""

    def take(request: Request, body: bytes) -> Response:
        if request.headers["authorization"] != "Bearer SG.key-1":
            return JSONResponse({"errors": [{"message": "authorization required"}]}, 401)
        document = json.loads(body)
        for field in ("personalizations", "from", "subject", "content"):
            if not document.get(field):
                return JSONResponse({"errors": [{"field": field, "message": "is required"}]}, 400)
        api.taken.append(document)
        return Response(status_code=202, headers={"X-Message-Id": "14c5d75ce93"})

    api = Api("/v3/mail/send", take)
    return api


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
        "SES_KEY": "wJalrXUtnFEMI", "MG_KEY": "key-1", "SG_KEY": "SG.key-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


SOURCES = {
    "ses": (ses_api, Auth("AKIDEXAMPLE", "env:SES_KEY"), {"region": "eu-west-1"}),
    "mailgun": (mailgun_api, Auth("api", "env:MG_KEY"), {"domain": "acme.test"}),
    "sendgrid": (sendgrid_api, Auth("apikey", "env:SG_KEY"), {}),
}


async def send(
    kind: str,
    script: list[Response | None] | None = None,
    count: int = 1,
    data: bytes = DATA,
    still: Callable[[Envelope], bool] | None = None,
) -> tuple[list[Result], Api]:
    make, auth, options = SOURCES[kind]
    async with serving(make()) as api:
        api.script = script or []
        source = Source(kind, kind=kind, host=api.url, auth=auth, options=options)
        async with Sender(source, connect=2.0, block=5.0, dot=5.0) as sender:
            envelopes = [mail(i, data) for i in range(1, count + 1)]
            results = await sender.send(
                [hop(1)], envelopes, source=source, connections=1, still=still
            )
    return results, api


@pytest.mark.parametrize("kind", ["ses", "mailgun"])
async def test_raw_bytes_arrive_as_composed(kind: str) -> None:
    (result,), api = await send(kind)
    assert result.accepted, result
    assert api.taken[0][1] == DATA
    assert "user1@d.test" in str(api.taken[0][0])
    assert "user1" not in (result.conversation or "")


async def test_sendgrid_gets_the_parts_as_json() -> None:
    (result,), api = await send("sendgrid")
    assert result.accepted, result
    (document,) = api.taken
    assert document["from"] == {"email": "news@acme.test", "name": "Jürgen"}
    assert [part["type"] for part in document["content"]] == ["text/plain", "text/html"]
    assert document["content"][1]["value"] == "<p>hellö</p>"
    assert base64.b64decode(document["attachments"][0]["content"]) == b"ABC"
    person = document["personalizations"][0]
    assert person["to"] == [{"email": "user1@d.test"}]
    assert person["headers"] == {"X-Tag": "a", "List-Unsubscribe": "<https://acme.test/u/1>"}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    ("answer", "stage", "code", "start"),
    [
        (JSONResponse({"message": "bad"}, 400), "dot", 554, "554 5.6.0"),
        (Response("x", 413), "dot", 552, "552 5.3.4"),
        (Response("x", 500), "dot", 451, "451 4.3.0"),
        (Response("x", 503), "dot", 451, "451 4.3.0"),
    ],
)
async def test_errors_in_smtp_words(
    kind: str, answer: Response, stage: str, code: int, start: str
) -> None:
    (result,), _ = await send(kind, [answer])
    assert (result.stage, result.code, result.error) == (stage, code, None)
    assert result.reply.startswith(start)


@pytest.mark.parametrize("kind", SOURCES)
async def test_429_is_obeyed_and_ends_the_batch(kind: str) -> None:
    busy = Response("slow down", 429, headers={"Retry-After": "17"})
    results, api = await send(kind, [None, busy], count=5)
    assert api.asked == 2
    assert [r.code for r in results] == [250, 451, 451, 451, 451]
    assert [r.retry_after for r in results] == [None, 17.0, 17.0, 17.0, 17.0]


async def test_what_may_not_go_any_more_is_not_asked_for() -> None:
    results, api = await send("ses", count=3, still=lambda envelope: envelope.job_id != 2)
    assert [r.job_id for r in results] == [1, 3]
    assert api.asked == 2


async def test_a_ses_quota_with_status_400_is_a_rate_limit() -> None:
    answer = JSONResponse({"__type": "LimitExceededException", "message": "Daily quota"}, 400)
    (result,), _ = await send("ses", [answer])
    assert (result.code, result.retry_after) == (451, 60.0)


async def test_refused_login_asks_the_secret_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MG_KEY", "old")
    results, api = await send("mailgun", count=3)
    assert {(r.stage, r.code) for r in results} == {("auth", 535)}
    assert api.asked == 2, "once with the value known, once anew, and then no more"


@pytest.mark.parametrize("status", [502, 504])
async def test_a_gateway_that_lost_the_answer_is_uncertain(status: int) -> None:
    (result,), _ = await send("ses", [Response("", status)])
    assert result.uncertain


async def test_nobody_there_is_a_connection_failure() -> None:
    _, auth, options = SOURCES["mailgun"]
    url = f"http://127.0.0.1:{free_port()}"
    source = Source("mg", kind="mailgun", host=url, auth=auth, options=options)
    async with Sender(source, connect=0.3) as sender:
        results = await sender.send([hop(1)], mails(2), source=source)
    assert {(r.stage, r.error, r.dot_sent) for r in results} == {("connect", "refused", False)}


async def test_credentials_do_not_travel_in_the_clear() -> None:
    source = Source(
        "mg", kind="mailgun", host="http://api.example.test", auth=Auth("api", "env:MG_KEY"),
        options={"domain": "acme.test"},
    )  # fmt: skip
    async with Sender(source) as sender:
        (result,) = await sender.send([hop(1)], mails(1), source=source)
    assert result.stage == "connect"
    assert "https" in result.reply


def test_retry_after_forms() -> None:
    now = 1_700_000_000.0
    date = "Tue, 14 Nov 2023 22:14:20 GMT"  # 60 s later
    assert retry_after(httpx.Headers({"Retry-After": date}), now) == 60.0
    assert retry_after(httpx.Headers({"X-RateLimit-Reset": "1700000030"}), now) == 30.0
    assert retry_after(httpx.Headers({"Retry-After": "soon"}), now) == 60.0
    assert retry_after(httpx.Headers({"Retry-After": "9" * 9}), now) == 86400.0


def test_a_rejection_by_content_is_told_apart() -> None:
    said = httpx.Response(400, json={"__type": "MessageRejected", "message": "virus"})
    assert judge("ses", said).text.startswith("554 5.7.1")
