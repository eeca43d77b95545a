"""Headers that ask for a way, geo zones, and who goes first, from the door to the mailbox."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from mailweir.contracts.ids import parse_id
from tests.acceptance.house import LONGEST, House, house
from tests.services import mmdb

POLICY = """
header_routing: [vip]
regions: [eu, us]
sources:
  tx-1: {buckets: [transactional], region: us}
  tx-2: {buckets: [transactional], region: us}
  news-1: {buckets: [marketing, bulk], region: us}
  news-eu: {buckets: [marketing, bulk], region: eu}
pools:
  transactional: {sources: [tx-1]}
  premium: {sources: [tx-2], buckets: [transactional]}
  news: {sources: [news-1, news-eu]}
rules:
  - match: {bucket: transactional}
    action: {pool: transactional}
  - name: germans
    match: {geo: de}
    action: {pool: news, region: eu}
  - name: rest
    action: {pool: news}
providers:
  gmail: {rate: 6000/min, connections: 10, per_connection: 1000, tls: opportunistic}
buckets:
  transactional: {recipient_limit: none}
  marketing: {recipient_limit: none}
  bulk: {recipient_limit: none}
"""
LARGE, SMALL, SIZE = 5000, 50, 500  # jobs; recipients a call


def post(home: House, key: str, **body: object) -> httpx.Response:
    return httpx.post(
        f"http://127.0.0.1:{home.port}/v1/messages",
        json={
            "from": "app@acme.example", "subject": "hello", "text": "hello\n",
            "bucket": "transactional", **body,
        },
        headers={"Authorization": f"Bearer {key}"},
        timeout=LONGEST,
    )  # fmt: skip


def key_of(home: House, tenant: str, *scopes: str) -> str:
    options = [word for scope in scopes for word in ("--scope", scope)]
    made = home.run("keys", "create", tenant, *options, "-o", "json")
    assert made.returncode == 0, made.stderr
    return str(json.loads(made.stdout)["key"])


def job_of(answer: httpx.Response) -> str:
    assert answer.status_code == 202, answer.text
    return str(answer.json()["jobs"][0]["id"])


def explained(home: House, job: str) -> dict[str, object]:
    done = home.run("route", "explain", "--id", job, "-o", "json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_wishes_zones_and_order(tmp_path: Path) -> None:
    geo = mmdb.write(tmp_path / "geo.mmdb", {"127.0.0.0/8": mmdb.country("EU", "DE")})
    env = {"MAILWEIR_GEO__DATABASE": str(geo)}
    with house(tmp_path, policy=POLICY, env=env) as home:
        vip, plain = key_of(home, "vip", "send", "route"), key_of(home, "plain", "send")
        asks = {"X-Mailweir-Pool": "premium"}

        # a header asks for a pool: granted to whom the policy and the key allow it
        asked = job_of(post(home, vip, to=["a@gmail.com"], headers=asks))
        ignored = job_of(post(home, plain, to=["b@gmail.com"], headers=asks))
        barred = job_of(post(home, vip, to=["c@gmail.com"], headers={"X-Mailweir-Pool": "news"}))
        home.wait_settled([asked, ignored, barred])
        one, two, three = (explained(home, job) for job in (asked, ignored, barred))
        assert (one["pool"], one["source"], one["precedence"]) == ("premium", "tx-2", "header")
        assert (two["pool"], two["precedence"]) == ("transactional", "rule")
        assert (three["pool"], three["precedence"]) == ("transactional", "rule")
        assert "do not serve transactional" in str(three["reasons"])  # isolation binds a wish, too
        # the wish is an instruction to us, nobody else sees it
        assert post(home, plain, to=["d@gmail.com"], pool="premium").status_code == 403

        # the zone of an MX nobody has looked at yet: the job waits for it and leaves from Europe
        away = job_of(post(home, vip, to=["e@firma.example"], bucket="bulk", unsubscribe=True))
        home.wait_settled([away])
        body = explained(home, away)
        assert (body["rule"], body["source"]) == ("germans", "news-eu")
        assert body["expands_to_itself"]
        decisions = json.loads(home.run("trace", away, "-o", "json").stdout)["timeline"]
        assert any("geo zone" in entry["text"] for entry in decisions if entry["what"] == "held")

        # a large tenant's backlog, then a small one's mail, then transactional. Nothing of bulk goes out
        # before all of it is there: a slow machine would submit no faster than it sends
        with home.standing_still("run worker --queues marketing"):
            for call in range(LARGE // SIZE):
                recipients = [f"l{call}x{i}@gmail.com" for i in range(SIZE)]
                answer = post(home, vip, to=recipients, bucket="bulk", unsubscribe=True)
                assert answer.status_code == 202
            small = post(
                home, plain, bucket="bulk", unsubscribe=True,
                to=[f"s{i}@gmail.com" for i in range(SMALL)],
            )  # fmt: skip
        urgent = post(home, plain, to=[f"t{i}@gmail.com" for i in range(20)])
        home.wait_ended(LARGE + SMALL + 20 + 4, longest=240)
        ends = ended(home)
        small_jobs = {parse_id(job["id"]) for job in small.json()["jobs"]}
        urgent_jobs = {parse_id(job["id"]) for job in urgent.json()["jobs"]}
        small_ends = [ends[job] for job in small_jobs]
        urgent_ends = [ends[job] for job in urgent_jobs]
        large_ends = sorted(ends[job] for job in ends.keys() - small_jobs - urgent_jobs)
        # accepted last, done long before the backlog that stood before them: behind no more than the path's
        # line at its throttle, ten seconds of fifty
        assert max(small_ends) < large_ends[int(len(large_ends) * 0.5)]
        assert max(urgent_ends) < large_ends[int(len(large_ends) * 0.3)]


def ended(home: House) -> dict[int, float]:
    """Job -> when it ended, policy seconds."""
    database = home.database()
    try:
        with database.read() as conn:
            rows = conn.exec_driver_sql("SELECT id, ended_at FROM jobs").all()
        return {int(job): float(at) for job, at in rows}
    finally:
        database.close()
