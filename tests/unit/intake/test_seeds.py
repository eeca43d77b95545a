"""Seed-inbox results by webhook: only with the secret and the path, kept for the scores."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from mailweir.contracts.policy import Policy
from mailweir.plumbing.database import Database, migrate
from reputation.history import refresh_signals
from reputation.intake import seeds
from reputation.intake.http import path_token
from reputation.policy.book import Book

KEY = b"k" * 32
RESULTS = [
    {"source": "ip1", "provider": "Gmail", "folder": "Inbox"},
    {"source": "ip1", "provider": "gmail", "folder": "Spam"},
    {"source": "ip1", "provider": "yahoo", "folder": "missing"},
]
BEARER = {"Authorization": "Bearer s3cret"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'spool.db'}")
    migrate(made)
    yield made
    made.close()


@pytest.fixture
def client(database: Database) -> TestClient:
    deps = seeds.SeedDeps(database, KEY, lambda *_: "s3cret\nseeds:pass")
    return TestClient(Starlette(routes=seeds.routes(deps)))


PATH = f"/v1/feedback/seeds/{path_token(KEY, 'seeds', 'acme')}"


def kept(database: Database) -> dict[tuple[str, str], float]:
    book = Book(Policy({}, {}))
    refresh_signals(database, book)
    return book.placement


def test_results_are_kept_and_told(client: TestClient, database: Database) -> None:
    answer = client.post(PATH, json={"results": RESULTS}, headers=BEARER)
    assert answer.status_code == 200
    assert answer.json()["inbox"] == [
        {"source": "ip1", "provider": "gmail", "share": 0.5},
        {"source": "ip1", "provider": "yahoo", "share": 0.0},
    ]
    assert kept(database) == {("ip1", "gmail"): 0.5, ("ip1", "yahoo"): 0.0}


def test_csv_and_basic_authentication(client: TestClient, database: Database) -> None:
    basic = base64.b64encode(b"seeds:pass").decode()
    answer = client.post(
        PATH,
        content="source,provider,folder\nip2,gmail,promotions\n",
        headers={"Authorization": f"Basic {basic}"},
    )
    assert answer.status_code == 200
    assert kept(database) == {("ip2", "gmail"): 1.0}


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_strangers_are_refused(client: TestClient, database: Database, headers: dict[str, str]):
    assert client.post(PATH, json=RESULTS, headers=headers).status_code == 401
    guessed = "/v1/feedback/seeds/" + path_token(b"x" * 32, "seeds", "acme")
    assert client.post(guessed, json=RESULTS, headers=BEARER).status_code == 404
    relay = "/v1/feedback/seeds/" + path_token(KEY, "ses", "acme")
    assert client.post(relay, json=RESULTS, headers=BEARER).status_code == 404
    assert kept(database) == {}


def test_without_a_secret_nobody_is_let_in(database: Database) -> None:
    deps = seeds.SeedDeps(database, KEY, lambda *_: "")
    client = TestClient(Starlette(routes=seeds.routes(deps)))
    assert client.post(PATH, json=RESULTS, headers=BEARER).status_code == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\xff\xfe", 400),
        (b"{}", 400),
        (json.dumps([{"source": "ip1", "provider": "gmail", "folder": "attic"}]).encode(), 400),
        (b" " * (1024 * 1024 + 1), 413),
    ],
)
def test_what_is_no_result(client: TestClient, database: Database, body: bytes, status: int):
    assert client.post(PATH, content=body, headers=BEARER).status_code == status
    assert kept(database) == {}
