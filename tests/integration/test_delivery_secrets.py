"""Secrets by reference, against servers written from Vault's and AWS' API pages."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from botocore.exceptions import ClientError
from moto import mock_aws

from mailweir.plumbing import sigv4
from mailweir.plumbing.secrets import Secrets, SecretUnavailable
from mailweir.plumbing.settings import Settings

CANARY = "c4n4ry-value"


def secrets(**section: object) -> Secrets:
    return Secrets(Settings.model_validate({"secrets": {"timeout": 1, **section}}))


class Server:
    """An HTTP server whose answer is ``reply(method, path, headers, body) -> (status, text)``."""

    def __init__(self) -> None:
        self.reply: Callable[[str, str, dict[str, str], bytes], tuple[int, str]]
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                outer.asked += 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, text = outer.reply(self.command, self.path, dict(self.headers), body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = _answer

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY", CANARY)
    assert secrets().get("env:RELAY") == CANARY


def test_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "s"
    keeper = secrets()
    path.write_text("first\n")
    assert keeper.get(f"file:{path}") == "first"
    path.write_text("second one\n")
    assert keeper.get(f"file:{path}") == "second one"
    stat = path.stat()
    path.write_text("SECOND ONE\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert keeper.refresh(f"file:{path}") == "SECOND ONE"


def test_file_with_a_key(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"smtp": CANARY, "n": 1}))
    assert secrets().get(f"file:{path}#smtp") == CANARY
    for key in ("n", "none"):
        with pytest.raises(SecretUnavailable, match=key):
            secrets().get(f"file:{path}#{key}")


@pytest.mark.parametrize(
    "reference",
    ["env:NOT_SET_ANYWHERE", "file:/no/such/file", "plain-password", "http:x", "vault:mount",
     "vault:kv/mail", "env:", ""],
)  # fmt: skip
def test_what_cannot_be_had_is_named_by_reference(reference: str) -> None:
    with pytest.raises(SecretUnavailable) as error:
        secrets().get(reference)
    assert error.value.reference == reference


@pytest.fixture
def vault(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("VAULT_ADDR", server.url)
    monkeypatch.setenv("VAULT_TOKEN", "root-token")
    stored = {"password": CANARY}

    def reply(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        if headers.get("X-Vault-Token") != "root-token":
            return 403, '{"errors":["permission denied"]}'
        if (method, path) != ("GET", "/v1/kv/data/mail/relay"):
            return 404, '{"errors":[]}'
        return 200, json.dumps({"data": {"data": stored, "metadata": {"version": 3}}})

    server.reply = reply
    return server


def test_vault(vault: Server) -> None:
    keeper = secrets()
    assert keeper.get("vault:kv/mail/relay#password") == CANARY
    assert keeper.get("vault:kv/mail/relay#password") == CANARY
    assert vault.asked == 1
    assert keeper.refresh("vault:kv/mail/relay#password") == CANARY
    assert vault.asked == 2


def test_vault_away_keeps_the_last_value(vault: Server) -> None:
    keeper = secrets(ttl=0, tries=2)
    assert keeper.get("vault:kv/mail/relay#password") == CANARY
    vault.reply = lambda *_: (503, '{"errors":["sealed"]}')
    assert keeper.get("vault:kv/mail/relay#password") == CANARY
    assert vault.asked == 3, "503 is tried again"
    with pytest.raises(SecretUnavailable, match="HTTP 503"):
        keeper.refresh("vault:kv/mail/relay#password")


def test_vault_says_no(vault: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "stolen-canary")
    with pytest.raises(SecretUnavailable, match="HTTP 403") as error:
        secrets().get("vault:kv/mail/relay#password")
    assert vault.asked == 1, "a refusal is not repeated"
    assert "canary" not in str(error.value)


@pytest.fixture
def aws(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """moto keeps the secrets, botocore checks our signature, HTTP between."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
        "AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)

    def reply(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        expected = boto_signature(method, server.url + path, headers, body, "secretsmanager")
        if headers["Authorization"] != expected:
            return 403, '{"__type":"InvalidSignatureException"}'
        assert headers["X-Amz-Target"] == "secretsmanager.GetSecretValue"
        try:
            found = client.get_secret_value(**json.loads(body))
        except ClientError as error:
            return 400, json.dumps({"__type": error.response["Error"]["Code"]})
        return 200, json.dumps({"Name": found["Name"], "SecretString": found["SecretString"]})

    with mock_aws():
        client = boto3.client("secretsmanager", region_name="eu-west-1")
        client.create_secret(Name="mail/relay", SecretString=json.dumps({"password": CANARY}))
        client.create_secret(Name="bare", SecretString=CANARY)
        server.reply = reply
        yield server


def boto_signature(
    method: str, url: str, headers: dict[str, str], body: bytes, service: str
) -> str:
    """The Authorization botocore computes for the same request at the same moment."""
    sent = {name.lower(): value for name, value in headers.items()}
    names = sent["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    request = AWSRequest(method=method, url=url, data=body)
    for name in names:
        if name != "host":
            request.headers[name] = sent[name]
    request.context["timestamp"] = sent["x-amz-date"]
    auth = SigV4Auth(
        BotoCredentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]),
        service,
        "eu-west-1",
    )
    text = auth.string_to_sign(request, auth.canonical_request(request))
    signature = auth.signature(text, request)
    scope = auth.scope(request)
    return (
        f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={';'.join(names)},"
        f" Signature={signature}"
    )


def test_aws(aws: Server) -> None:
    keeper = secrets(aws_url=f"{aws.url}/")
    assert keeper.get("aws:mail/relay#password") == CANARY
    assert keeper.get("aws:bare") == CANARY
    with pytest.raises(SecretUnavailable, match="HTTP 400"):
        keeper.get("aws:unknown")


def test_aws_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(SecretUnavailable, match="AWS_ACCESS_KEY_ID"):
        secrets().get("aws:x")


def test_signature_matches_the_published_example() -> None:
    """docs.aws.amazon.com, Signature Version 4 test suite, "get-vanilla"."""
    headers = sigv4.sign(
        "GET",
        "https://example.amazonaws.com/",
        {},
        b"",
        service="service",
        region="us-east-1",
        by=sigv4.Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
        now=datetime(2015, 8, 30, 12, 36, tzinfo=UTC),
    )
    assert headers["Authorization"].endswith(
        "Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
    )


def test_no_repr_shows_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY", CANARY)
    keeper = secrets()
    keeper.get("env:RELAY")
    assert CANARY not in repr(keeper)
    assert CANARY not in repr(sigv4.Credentials("id", CANARY, CANARY))
