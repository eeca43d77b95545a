"""The HTTP door over a real spool: 202 means committed, everything else is a problem with a path."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mailweir.contracts.ids import parse_id
from mailweir.mail import skeleton
from mailweir.plumbing import apikeys
from mailweir.plumbing.database import DatabaseUnavailable
from tests.services.door import Door, open_door

MESSAGE: dict[str, Any] = {"from": "a@acme.test", "to": ["b@x.test"], "subject": "s", "text": "hi"}


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path, web={"max_recipients": 50, "max_body": 200_000}) as door:
        yield door


@pytest.fixture
async def http(door: Door) -> AsyncIterator[httpx.AsyncClient]:
    async with client(door, door.key) as http:
        yield http


def client(door: Door, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(door.app),
        base_url="http://door",
        headers={"Authorization": f"Bearer {key}"},
    )


async def test_submit_read_cancel(door: Door, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/messages", json=MESSAGE | {"to": ["b@x.test", "c@y.test"]})
    assert answer.status_code == 202
    body = answer.json()
    assert [job["status"] for job in body["jobs"]] == ["accepted", "accepted"]
    assert {job.recipient for job in door.spool.jobs_of(parse_id(body["id"]))} == {
        "b@x.test",
        "c@y.test",
    }
    seen = (await http.get(answer.headers["Location"])).json()
    assert seen["states"] == {"accepted": 2}
    job = (await http.get(f"/v1/jobs/{body['jobs'][0]['id']}")).json()
    assert (job["recipient"], job["state"]) == ("b@x.test", "accepted")
    assert (await http.post(f"/v1/messages/{body['id']}/cancel")).json()["cancelled"] == 2
    assert (await http.get(answer.headers["Location"])).json()["states"] == {"cancelled": 2}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"\xff", 400, None),
        (b'{"subject": "\\ud800"}', 400, None),
        (b'{"priority": NaN}', 400, None),
        (b"[" * 100_000, 422, None),
        (b'{"variables": {"a": ' + b"[" * 100_000, 422, "variables"),
        (b'{"send_at": 1e999}', 422, "send_at"),
        (b'{"tenant": "other"}', 422, "tenant"),
        (b'{"idempotency_kye": "x"}', 422, "idempotency_kye"),
        (b'{"to": [{"email": "a@x.test", "mail": 1}]}', 422, "to[0].mail"),
        (json.dumps(MESSAGE | {"to": ["b@x.test", "no"]}).encode(), 422, "to[1]"),
        (json.dumps(MESSAGE | {"to": [f"u{i}@x.test" for i in range(50_001)]}).encode(), 413, None),
        (b" " * 400_000, 413, None),
    ],
)
async def test_bad_bodies(
    door: Door, http: httpx.AsyncClient, body: bytes, status: int, field: str | None
) -> None:
    answer = await http.post("/v1/messages", content=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["request_id"]) == (status, answer.headers["x-request-id"])
    if field is not None:
        assert problem["field"].startswith(field)
    assert door.spool.counts() == {}


async def test_a_body_is_cut_off_while_it_streams(http: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 50_000_000:
            sent += 65536
            yield b" " * 65536

    assert (await http.post("/v1/messages", content=endless())).status_code == 413
    assert sent < 1_000_000
    zipped = await http.post("/v1/messages", content=b"x", headers={"Content-Encoding": "gzip"})
    assert zipped.status_code == 415


async def test_who_may(door: Door) -> None:
    async with client(door, "") as http:
        for key in (
            "",
            "mw_x.y",
            "mw_" + "0" * 12 + ".secret",
            door.key + "x",
            door.key.partition(".")[0],
        ):
            answer = await http.post(
                "/v1/messages", json=MESSAGE, headers={"Authorization": f"Bearer {key}"}
            )
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    reader = apikeys.create(door.database, tenant="default", scopes=("read",))
    async with client(door, reader) as http:
        assert (await http.post("/v1/messages", json=MESSAGE)).status_code == 403
    old = apikeys.create(door.database, tenant="default", scopes=("send",), now=0, expires_at=1)
    async with client(door, old) as http:
        assert (await http.post("/v1/messages", json=MESSAGE)).status_code == 401
    limited = apikeys.create(door.database, tenant="default", domains=("acme.test",))
    async with client(door, limited) as http:
        assert (await http.post("/v1/messages", json=MESSAGE)).status_code == 202
        answer = await http.post("/v1/messages", json=MESSAGE | {"from": "a@evil.test"})
        assert (answer.status_code, answer.json()["field"]) == (403, "from")


async def test_tenants_do_not_see_each_other(door: Door, http: httpx.AsyncClient) -> None:
    theirs = apikeys.create(door.database, tenant="other", scopes=("send", "read"))
    body = (await http.post("/v1/messages", json=MESSAGE)).json()
    stored = (await http.post("/v1/templates", json={"subject": "s", "text": "t"})).json()
    async with client(door, theirs) as other:
        assert (await other.get(f"/v1/messages/{body['id']}")).status_code == 404
        assert (await other.get(f"/v1/jobs/{body['jobs'][0]['id']}")).status_code == 404
        assert (await other.post(f"/v1/messages/{body['id']}/cancel")).status_code == 404
        message = {"from": "a@x.test", "to": ["b@x.test"], "template": stored["id"]}
        assert (await other.post("/v1/messages", json=message)).status_code == 422
        same_key = {"Idempotency-Key": "1"}
        mine = await http.post("/v1/messages", json=MESSAGE, headers=same_key)
        its = await other.post("/v1/messages", json=MESSAGE, headers=same_key)
        assert mine.json()["id"] != its.json()["id"]
    assert (await http.get(f"/v1/messages/{body['id']}")).json()["states"] == {"accepted": 1}


async def test_equal_keys_in_flight_are_one_message(
    door: Door, http: httpx.AsyncClient
) -> None:  # P5
    headers = {"Idempotency-Key": "reset:7"}
    answers = await asyncio.gather(
        *(http.post("/v1/messages", json=MESSAGE, headers=headers) for _ in range(50))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({job["id"] for answer in answers for job in answer.json()["jobs"]}) == 1
    assert sum(not answer.json()["duplicate"] for answer in answers) == 1
    other = await http.post("/v1/messages", json=MESSAGE | {"text": "ho"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    both = await http.post("/v1/messages", json=MESSAGE | {"idempotency_key": "x"}, headers=headers)
    assert both.status_code == 422


async def test_batch_answers_item_by_item(http: httpx.AsyncClient) -> None:
    items: list[Any] = [MESSAGE, MESSAGE | {"to": ["no"]}, MESSAGE | {"bad": 1}, MESSAGE]
    for content in (json.dumps(items), "\n".join(map(json.dumps, items)) + "\n"):
        answer = await http.post("/v1/messages:batch", content=content)
        assert answer.status_code == 202
        results = answer.json()["results"]
        assert [r["status"] for r in results] == [202, 422, 422, 202]
        assert [r["index"] for r in results] == [0, 1, 2, 3]
        assert results[1]["problem"]["field"] == "to[0]"
    too_many = await http.post("/v1/messages:batch", content=b"{}\n" * 1001)
    assert too_many.status_code == 413
    broken = await http.post(
        "/v1/messages:batch", content=b'{"to":\n' + json.dumps(MESSAGE).encode()
    )
    assert [r["status"] for r in broken.json()["results"]] == [400, 202]


async def test_a_template_is_stored_once(door: Door, http: httpx.AsyncClient) -> None:  # P6
    template = {"subject": "Hi {{ n }}", "text": "x" * 5000 + " {{ n }}"}
    stored = [(await http.post("/v1/templates", json=template)).json() for _ in range(2)]
    assert stored[0] == stored[1]
    assert stored[0]["variables"] == ["n"]
    for start in range(0, 100, 50):
        to = [
            {"email": f"u{i}@x.test", "variables": {"n": f"N{i}"}} for i in range(start, start + 50)
        ]
        answer = await http.post(
            "/v1/messages", json={"from": "a@acme.test", "to": to, "template": stored[0]["id"]}
        )
        assert answer.status_code == 202
        jobs = door.spool.jobs_of(parse_id(answer.json()["id"]))
        assert len(jobs) == 50
    with door.database.read() as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM contents").scalar() == 1
    content = door.spool.contents([jobs[0].content_id])[jobs[0].content_id]
    merged = skeleton.decode(content.body).merge(jobs[0].variables or {})
    assert merged.startswith(b"Subject: Hi N50\r\n")
    assert jobs[0].meta.prepend.count("To: u50@x.test\r\n") == 1
    bad = await http.post("/v1/templates", json={"subject": "s", "text": "{{ a.b() }}"})
    assert (bad.status_code, bad.json()["field"]) == (422, "template.text")


async def test_no_false_202_without_a_database(
    door: Door, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        await http.post("/v1/messages", json=MESSAGE)
    ).status_code == 202  # the key is known now

    def down(_: object) -> None:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(door.spool, "accept", down)
    answers = await asyncio.gather(*(http.post("/v1/messages", json=MESSAGE) for _ in range(20)))
    assert {(a.status_code, a.headers["retry-after"]) for a in answers} == {(503, "2")}
    batch = await http.post("/v1/messages:batch", json=[MESSAGE, MESSAGE])
    assert batch.status_code == 503
    monkeypatch.undo()
    assert (await http.post("/v1/messages", json=MESSAGE)).status_code == 202


async def test_a_slow_commit_is_503_and_the_same_key_is_safe(tmp_path: Path) -> None:
    import threading

    with open_door(tmp_path, accept={"commit_timeout": 1.0}) as door:
        go = threading.Event()
        real = door.spool.accept

        def slow(messages: Any) -> Any:
            go.wait(60)
            return real(messages)

        door.spool.accept = slow  # type: ignore[method-assign]  # a stand-in for a stalled disk
        async with client(door, door.key) as http:
            headers = {"Idempotency-Key": "k"}
            assert (
                await http.post("/v1/messages", json=MESSAGE, headers=headers)
            ).status_code == 503
            go.set()
            door.spool.accept = real  # type: ignore[method-assign]  # see above
            assert (
                await http.post("/v1/messages", json=MESSAGE, headers=headers)
            ).status_code == 202
        assert door.spool.counts() == {"transactional": {"accepted": 1}}


async def test_a_revoked_key_is_out_within_five_seconds(
    door: Door, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:  # S18
    assert (await http.post("/v1/messages", json=MESSAGE)).status_code == 202
    assert apikeys.revoke(door.database, door.key, 1.0)
    assert not apikeys.revoke(door.database, door.key, 1.0)
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + apikeys.CACHE_SECONDS + 0.01)
    assert (await http.post("/v1/messages", json=MESSAGE)).status_code == 401
    with door.database.read() as conn:
        row = conn.exec_driver_sql("SELECT * FROM api_keys").one()
    secret = door.key.partition(".")[2]
    assert all(secret not in str(value) for value in row)
