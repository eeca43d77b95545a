"""S34: a source at an address no worker has. Its jobs are held with that reason, the alarm is up; they go
as soon as the source is reached."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from tests.acceptance.house import House, house

FAR, HERE = "192.0.2.77", "127.0.0.1"  # RFC 5737: no machine has it
POLICY = f"""
sources:
  tx-1: {{buckets: [transactional]}}
  news-1: {{ip: {FAR}, buckets: [marketing, bulk]}}
pools:
  transactional: {{sources: [tx-1]}}
  news: {{sources: [news-1]}}
rules:
  - match: {{bucket: transactional}}
    action: {{pool: transactional}}
  - name: rest
    action: {{pool: news}}
providers:
  gmail: {{rate: 60000/min, connections: 10, per_connection: 1000, tls: opportunistic}}
buckets:
  bulk: {{recipient_limit: none}}
"""
ALARM = 'mailweir_source_cut_off{queue="bulk",source="news-1"} 1.0'


def metrics(home: House) -> str:
    return httpx.get(f"http://127.0.0.1:{home.port}/metrics", timeout=30).text


def test_held_with_the_reason_alarmed_and_sent_once_reached(tmp_path: Path) -> None:
    with house(tmp_path, policy=POLICY) as home:
        home.wait("the alarm", lambda: ALARM in metrics(home))
        (far,) = home.send(["ann@gmail.com"], bucket="bulk")
        (near,) = home.send(["bob@gmail.com"])
        home.wait("a held job", lambda: home.state_of(far) == "held")
        home.wait_settled([near])
        assert home.state_of(near) == "sent"

        told = json.loads(home.run("trace", far, "-o", "json").stdout)
        why = "no live worker of its queue reaches this source"
        assert why in told["reason"]
        assert not [step for step in told["timeline"] if "attempt" in step["text"]]
        shown = json.loads(home.run("route", "explain", "--id", far, "-o", "json").stdout)
        assert shown["outcome"] == "held"
        assert [c["rejected_because"] for c in shown["candidates"]] == [why]
        status = json.loads(home.run("status", "-o", "json").stdout)
        assert {"queue": "bulk", "source": "news-1"} in status["cut_off"]

        mended = tmp_path / "mended.yaml"
        mended.write_text(POLICY.replace(FAR, HERE))
        answer = home.run("policy", "apply", str(mended), "-m", "the address we have")
        assert answer.returncode == 0, answer.stderr
        home.wait_settled([far])
        assert home.state_of(far) == "sent"
        home.wait("the end of the alarm", lambda: ALARM not in metrics(home))
