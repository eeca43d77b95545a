"""A provider that takes connections and says nothing: traffic is on the fallback relay within 5 s, one probe at
a time looks whether it is back, and it comes back from 10 to 100 % (R19, S35-S38)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import MappingProxyType

import pytest

from mailweir.plumbing import keys
from tests.acceptance.house import House, house
from tests.acceptance.sink import OK, Sink, serving

RATE = 30.0  # policy seconds a real second
PER_SECOND = 8.0  # jobs offered, real
TRICKLE, RAMP = 180 / RATE, 900 / RATE  # real seconds, see workers/policy/breaker.py

POLICY = """
sources:
  tx-1: {{buckets: [transactional]}}
  smarthost: {{kind: relay, host: localhost, port: {port}, tls: none, buckets: [transactional]}}
  news-1: {{buckets: [marketing, bulk]}}
pools:
  transactional: {{sources: [tx-1], relays: [smarthost]}}
  news: {{sources: [news-1]}}
rules:
  - match: {{bucket: transactional}}
    action: {{pool: transactional}}
  - name: rest
    action: {{pool: news}}
providers:
  gmail: {{rate: 20/min, connections: 4, per_connection: 100, tls: opportunistic}}
buckets:
  transactional: {{recipient_limit: none}}
"""  # 20 a minute are 10 a real second


GIVEN_UP = {  # a silent remote after 1 s
    f"MAILWEIR_SMTP__{phase}": "1"
    for phase in ("CONNECT", "BANNER", "HELO", "MAIL", "RCPT", "DATA", "DOT")
}


@contextmanager
def stage(
    folder: Path, primary: Sink, timeouts: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[House, Sink]]:
    """A house, its provider, its fallback relay."""
    with serving(Sink()) as relay, serving(primary):
        env = {
            "MAILWEIR_CLOCK__RATE": str(RATE),
            "MAILWEIR_DNS__MX_MAP": json.dumps({"gmail.com": [f"127.0.0.1:{primary.port}"]}),
            **timeouts,
        }
        with house(folder, policy=POLICY.format(port=relay.port), env=env) as home:
            yield home, relay


@contextmanager
def feeding(home: House) -> Iterator[None]:
    """Offer jobs at a steady pace until the block ends."""
    done = threading.Event()
    numbers = count()

    def feed() -> None:
        # by a timetable: what a submission takes must not make the pace slower
        due = time.monotonic()
        while not done.wait(max(0.0, due - time.monotonic())):
            home.send([f"u{next(numbers)}@gmail.com" for _ in range(int(PER_SECOND / 2))])
            due += 0.5

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def between(times: list[float], start: float, end: float) -> int:
    return sum(start <= at < end for at in times)


@pytest.mark.alone  # mails a second are the machine's where it is shared
def test_a_black_hole_and_the_way_back(tmp_path: Path) -> None:
    primary = Sink()
    with stage(tmp_path, primary, GIVEN_UP) as (home, relay), feeding(home):
        home.wait("the first mails", lambda: len(primary.times("stored")) > 20)
        assert not relay.seen, "the relay is for failures"

        primary.deaf = True
        begun = time.time()
        home.wait("traffic on the relay", lambda: bool(relay.times("stored")))
        moved = relay.times("stored")[0]
        assert moved - begun <= 5.0

        # two rechecks, 1 and 5 minutes after it opened, fail
        settled = time.time() + 1.5  # whatever was on its way has run out of time
        home.wait(
            "two failed rechecks", lambda: between(primary.times("connect"), settled, 1e12) >= 1
            and time.time() > moved + 1.2 * 300 / RATE + 1.5,
        )  # fmt: skip
        lifted = time.time()
        primary.deaf = False

        def back() -> bool:
            return between(primary.times("stored"), lifted, 1e12) > 0

        home.wait("the good recheck", back, longest=60)
        good = next(at for at in primary.times("stored") if at >= lifted)
        end = good + TRICKLE + RAMP
        full = end + 10  # what the relay was given before has gone its way
        home.wait("ten seconds behind the ramp", lambda: time.time() > full, longest=90)

    probes = [one for one in primary.seen if one.what == "connect" and settled <= one.at < good]
    assert 1 <= len(probes) <= 4, "rechecks at 1, 5 and 15 minutes, nothing else"
    assert {one.open for one in probes} == {1}, "one probe at a time"

    here, there = primary.times("stored"), relay.times("stored")
    assert between(there, moved, good) > PER_SECOND * (good - moved) * 0.5, "the relay carried it"
    # 6 a minute, then from 10 % of its 10 a second to all of it
    assert between(here, good, good + TRICKLE) <= 0.1 * RATE * TRICKLE + 2
    early = between(here, good + TRICKLE, good + TRICKLE + RAMP / 4) / (RAMP / 4)
    late = between(here, end - RAMP / 4, end) / (RAMP / 4)
    assert early <= 0.35 * 10, "a quarter into the ramp it may have 32 %"
    assert early < late
    # what the ramp leaves goes by the relay: nobody waits for the provider to be trusted again
    for start in (good + TRICKLE, good + TRICKLE + RAMP / 2):
        both = between(here + there, start, start + RAMP / 4) / (RAMP / 4)
        assert both >= 0.75 * PER_SECOND
    # and in the end all of it is back
    assert between(here, full - 6, full) >= 0.75 * PER_SECOND * 6
    assert between(there, full - 6, full) <= 0.05 * PER_SECOND * 6


def test_unknown_users_never_open_a_breaker(tmp_path: Path) -> None:
    def rcpt(recipient: str, times: int) -> str:
        return "550 5.1.1 user unknown" if recipient.startswith("nobody") else OK

    primary = Sink(rcpt=rcpt)
    with stage(tmp_path, primary) as (home, relay):
        home.send([f"nobody{i}@gmail.com" for i in range(60)])
        states = home.wait_ended(60)
        assert states == {"bounced": 60}
        assert home.redis().hget(keys.path_state("tx-1", "gmail"), "phase") in (None, b"closed")
        home.send([f"somebody{i}@gmail.com" for i in range(10)])
        assert home.wait_ended(70)["sent"] == 10
        assert sum(primary.stored.values()) == 10
        assert not relay.seen
