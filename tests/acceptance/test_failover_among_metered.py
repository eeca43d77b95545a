"""A provider fails while many others are metered: mail that waits for their tokens holds no place of a worker
that the failed one's mail needs on its way round (S35)."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

from tests.acceptance.house import house
from tests.acceptance.sink import OK, Sink, serving

METERED = 40
"""Domains, each a provider of its own; 5 mails a second each: soon enough to be given to workers."""
JOBS = 16_000  # three of four to metered domains: far more than they take while this lasts
WITHIN = 5.0  # seconds, S35
DOWN = "421 4.3.2 service not available"

POLICY = """
sources:
  tx-1: {{buckets: [transactional]}}
  news-1: {{buckets: [marketing, bulk]}}
  smarthost: {{kind: relay, host: localhost, port: {port}, tls: none, buckets: [marketing, bulk]}}
pools:
  transactional: {{sources: [tx-1]}}
  news: {{sources: [news-1], relays: [smarthost]}}
rules:
  - match: {{bucket: transactional}}
    action: {{pool: transactional}}
  - name: rest
    action: {{pool: news}}
providers:
  gmail: {{rate: 6000/min, connections: 8, per_connection: 1000, tls: opportunistic}}
  other: {{rate: 300/min, connections: 4, per_connection: 1000, tls: opportunistic}}
buckets:
  bulk: {{recipient_limit: none}}
"""


class Provider(Sink):
    """Takes everything, until it is down."""

    down = False

    def reply(self, recipient: str, times: int) -> str:
        return DOWN if self.down else OK


def _address(number: int) -> str:
    domain = "gmail.com" if number % 4 == 0 else f"metered{number % METERED}.example"
    return f"user{number}@{domain}"


def test_mail_of_a_failed_provider_passes_what_waits_for_tokens(tmp_path: Path) -> None:
    primary = Provider()
    primary.rcpt = primary.reply
    with serving(Sink()) as relay, serving(primary), serving(Sink()) as others:
        hosts = {f"metered{i}.example": [f"127.0.0.1:{others.port}"] for i in range(METERED)}
        hosts["gmail.com"] = [f"127.0.0.1:{primary.port}"]
        env = {"MAILWEIR_DNS__MX_MAP": json.dumps(hosts)}
        with house(tmp_path, policy=POLICY.format(port=relay.port), env=env) as home:
            home.mail_list([_address(i) for i in range(JOBS)])
            home.wait("mail on its way", lambda: len(primary.times("stored")) > 100)
            primary.down, failed = True, time.time()
            home.wait("traffic on the relay", lambda: len(relay.times("stored")) >= 100)
            first, hundredth = (relay.times("stored")[place] - failed for place in (0, 99))
            waiting = home.states()

    print(f"mail by the relay: first {first:.2f}, hundredth {hundredth:.2f} s after the failure")
    assert hundredth <= WITHIN
    assert waiting["held"] + waiting["accepted"] + waiting["due"] > 1_000, "others were metered"
    share = Counter(one.recipient.partition("@")[2] for one in relay.seen if one.what == "stored")
    assert set(share) == {"gmail.com"}, "only what failed went round"
