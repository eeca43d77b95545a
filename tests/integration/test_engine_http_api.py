"""ESPs' HTTP APIs through the whole engine: sent once, quotas hold the path, attempts tell the truth."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
import redis
from starlette.responses import JSONResponse, Response

from mailweir.contracts.lifecycle import State
from mailweir.contracts.policy import Source
from mailweir.plumbing import keys
from tests.integration.engine_rig import Rig, policy_for, settings_for
from tests.integration.test_delivery_http_api import SOURCES, Api, serving

pytestmark = pytest.mark.needs("redis")
BODY = (
    b"From: news@acme.test\r\nTo: you@rcpt.test\r\nSubject: hi\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: text/plain\r\n\r\nhello\r\n"
)
LATER = {
    "ses": JSONResponse({"message": "Too many requests"}, 429, headers={"Retry-After": "120"}),
    "mailgun": JSONResponse({"message": "limit"}, 429, headers={"Retry-After": "120"}),
    "sendgrid": JSONResponse(
        {"errors": [{"message": "too many requests"}]}, 429, headers={"Retry-After": "120"}
    ),
}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SES_KEY": "wJalrXUtnFEMI",
        "MG_KEY": "key-1",
        "SG_KEY": "SG.key-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")  # the server's own check of signatures
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")


def rig_for(kind: str, api: Api, folder: Path, redis_url: str) -> Rig:
    _, auth, options = SOURCES[kind]
    policy = policy_for("rcpt.test")
    source = Source(kind, kind=kind, host=api.url, auth=auth, options=options, connections=2)
    settings = settings_for(folder, redis_url, {"*": ["127.0.0.1:1"]})
    return Rig.build(settings, msgspec.structs.replace(policy, sources={kind: source}))


@pytest.mark.parametrize("kind", sorted(SOURCES))
async def test_every_job_is_handed_over_once(
    kind: str, tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    async with serving(SOURCES[kind][0]()) as api:
        rig = rig_for(kind, api, tmp_path, redis_url)
        ids = rig.accept([f"u{i}@rcpt.test" for i in range(12)], body=BODY)
        async with rig.worker() as worker:
            await asyncio.gather(*(worker.engine.work(c) for c in rig.settle(source=kind)))
        assert rig.states(ids) == {State.SENT: 12}
        assert len(api.taken) == 12
    attempts = rig.attempts()
    assert {(a["source"], a["provider"], a["code"], a["host"]) for a in attempts} == {
        (kind, "rcpt.test", 250, api.url)
    }


@pytest.mark.parametrize("kind", sorted(SOURCES))
async def test_a_429_defers_one_job_and_holds_the_path_for_the_others(
    kind: str, tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    async with serving(SOURCES[kind][0]()) as api:
        api.script = [None, LATER[kind], LATER[kind]]
        rig = rig_for(kind, api, tmp_path, redis_url)
        ids = rig.accept([f"u{i}@rcpt.test" for i in range(12)], body=BODY)
        async with rig.worker() as worker:
            begin = rig.clock.now()
            await asyncio.gather(*(worker.engine.work(c) for c in rig.settle(source=kind)))
            states = rig.states(ids)
            spent = len(rig.attempts())
            assert states[State.DEFERRED] in (1, 2), "only those that were really refused"
            assert states[State.SENT] == len(api.taken)
            away = states[State.HELD] + states[State.DUE]  # asked to wait; another way may be free
            assert away == 12 - states[State.DEFERRED] - states[State.SENT]
            assert spent == states[State.DEFERRED] + states[State.SENT] == api.asked
            for job in map(rig.spool.job, ids):
                assert job is not None
                if job.state in (State.HELD, State.DEFERRED):
                    assert job.due_at is not None
                    assert job.due_at >= begin + 120
            hold = rig.client.hget(keys.path_state(kind, "rcpt.test"), "hold")
            assert hold is not None
            assert float(hold) >= begin + 120
            later = rig.accept(["late@rcpt.test"], body=BODY)
            chunks = rig.settle(source=kind, routed_in=5.0)  # it waits, whatever the router thinks
            await asyncio.gather(*(worker.engine.work(c) for c in chunks))
            assert rig.states(later)[State.HELD] == 1
            assert api.asked == spent, "the path waits: the API is not asked"
    deferred = [a for a in rig.attempts() if a["outcome"] == "deferred"]
    assert {a["category"] for a in deferred} == {"rate_limited"}


async def test_a_refused_key_is_the_path_s_fault_and_no_job_s(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MG_KEY", "revoked")
    async with serving(SOURCES["mailgun"][0]()) as api:
        rig = rig_for("mailgun", api, tmp_path, redis_url)
        [job_id] = rig.accept(["u@rcpt.test"], body=BODY)
        async with rig.worker() as worker:
            await asyncio.gather(*(worker.engine.work(c) for c in rig.settle(source="mailgun")))
        assert rig.states([job_id]) == {State.DEFERRED: 1}
        [attempt] = rig.attempts()
        assert (attempt["stage"], attempt["code"], attempt["suppress"]) == ("auth", 535, None)
        assert api.taken == []


async def test_a_lost_answer_is_uncertain(
    tmp_path: Path, redis_url: str, redis_clean: redis.Redis
) -> None:
    async with serving(SOURCES["mailgun"][0]()) as api:
        api.script = [Response("bad gateway", 502)]
        rig = rig_for("mailgun", api, tmp_path, redis_url)
        ids = rig.accept(["u@rcpt.test"], body=BODY)
        async with rig.worker() as worker:
            await asyncio.gather(*(worker.engine.work(c) for c in rig.settle(source="mailgun")))
        assert rig.states(ids) == {State.UNCERTAIN: 1}
