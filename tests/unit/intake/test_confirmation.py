"""SNS subscriptions: confirmed once, only when signed, for an allowed topic, at SNS's own address."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from mailweir.plumbing.database import Database, migrate
from mailweir.spool.store import Spool
from reputation.intake.confirmation import Confirmation, ConfirmationUnavailable
from reputation.intake.http import IntakeDeps, path_token, routes
from reputation.intake.providers.base import Refused
from reputation.intake.providers.sns import SUBSCRIBE_URL
from reputation.intake.record import Recorder
from tests.unit.intake.test_webhooks import sns_body, sns_key  # noqa: F401 - a fixture

KEY = b"k" * 32
TOPIC = "arn:aws:sns:us-east-1:123456789012:ses"
NEAR = re.compile(r"http://127\.0\.0\.1:\d+/\?[A-Za-z=&]+")  # in SNS's place


class Sns:
    """SNS's end: answers as told, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = (200, b"<ConfirmSubscriptionResult><SubscriptionArn>a</SubscriptionArn>", "")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, body, location = outer.answer
                self.send_response(status)
                if location:
                    self.send_header("Location", location)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def sns() -> Iterator[Sns]:
    server = Sns()
    yield server
    server.close()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'spool.db'}")
    migrate(made)
    yield made
    made.close()


def door(database: Database, pem: bytes, confirm: Confirmation | None) -> TestClient:
    recorder = Recorder(database, Spool(database), None)
    deps = IntakeDeps(
        recorder, KEY, lambda *_: "", lambda _: pem, topics=frozenset({TOPIC}), confirm=confirm
    )
    return TestClient(Starlette(routes=routes(deps)))


def question(key, url, **changes):
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    message = {"Type": "SubscriptionConfirmation", "Token": "t", "Timestamp": stamp}
    return sns_body(key, **{**message, "SubscribeURL": url, **changes})


def post(client, message):
    path = f"/v1/feedback/ses/{path_token(KEY, 'ses', 'acme')}"
    return client.post(path, content=json.dumps(message))


def test_an_allowed_topic_is_confirmed_once(database, sns, sns_key):  # noqa: F811
    key, pem = sns_key
    client = door(database, pem, Confirmation(allowed=NEAR))
    answer = post(client, question(key, f"{sns.url}/?Action=ConfirmSubscription&Token=t"))
    assert (answer.status_code, answer.json()) == (200, {"subscription": "confirmed"})
    assert sns.asked == ["/?Action=ConfirmSubscription&Token=t"]


def test_forged_and_foreign_questions_open_no_connection(database, sns, sns_key):  # noqa: F811
    key, pem = sns_key
    client = door(database, pem, Confirmation(allowed=NEAR))
    url = f"{sns.url}/?Action=ConfirmSubscription"
    forged = question(key, url)
    forged["Token"] = "other"
    assert post(client, forged).status_code == 401
    other = question(key, url, TopicArn="arn:aws:sns:us-east-1:123456789012:other")
    assert post(client, other).status_code == 401
    strict = door(database, pem, Confirmation())
    assert post(strict, question(key, url)).status_code == 401  # signed, but not SNS's address
    assert sns.asked == []


def test_redirects_are_not_followed_and_a_refusal_comes_again(database, sns, sns_key):  # noqa: F811
    key, pem = sns_key
    client = door(database, pem, Confirmation(allowed=NEAR))
    url = f"{sns.url}/?Action=ConfirmSubscription"
    sns.answer = (302, b"", f"{sns.url}/elsewhere")
    assert post(client, question(key, url)).status_code == 503
    sns.answer = (400, b"<Error/>", "")
    assert post(client, question(key, url)).status_code == 503
    assert sns.asked == ["/?Action=ConfirmSubscription"] * 2


def test_without_leave_it_says_how_to_confirm_by_hand(database, sns, sns_key):  # noqa: F811
    key, pem = sns_key
    answer = post(door(database, pem, None), question(key, f"{sns.url}/?Action=x"))
    assert answer.status_code == 202
    assert "confirm-subscription" in answer.json()["how"]
    assert sns.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription",
        "https://sns.us-east-1.amazonaws.com@evil.example/?Action=x",
        "https://sns.us-east-1.amazonaws.com.evil.example/?Action=x",
        "https://sns.us-east-1.amazonaws.com:8443/?Action=x",
        "https://sns.us-east-1.amazonaws.com/x?Action=x",
        "https://sns.us-east-1.amazonaws.com/?Action=x#y",
        "https://bucket.s3.amazonaws.com/?Action=x",
        "https://169.254.169.254/?Action=x",
        "https://sns.us-east-1.amazonaws.com/?Action=x\n",
        "",
    ],
)
def test_only_sns_itself_is_asked(url):  # W9
    with pytest.raises(Refused):
        Confirmation()(url)


def test_sns_own_address_is_known():
    real = (
        "https://sns.eu-central-1.amazonaws.com/?Action=ConfirmSubscription"
        "&TopicArn=arn:aws:sns:eu-central-1:123456789012:ses&Token=2336412f37fb687f5d51e6e2425dacb"
    )
    assert SUBSCRIBE_URL.fullmatch(real)


def test_an_unreachable_sns_is_said(sns):
    sns.close()
    with pytest.raises(ConfirmationUnavailable):
        Confirmation(allowed=NEAR)(f"{sns.url}/?Action=x")
