"""A path fails while its bulk queue is full: within 5 s of its breaker's opening nothing is tried on it any
more and its mail leaves by the fallback relay; without another way the jobs wait at the router, and nothing
goes back and forth (S35, S36)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mailweir.plumbing import keys
from tests.acceptance.house import House, house
from tests.acceptance.sink import OK, Sink, serving

JOBS = 5_000
WITHIN = 5.0  # seconds, S35
SLOW = 0.01  # seconds of the server's one thread for each mail: 100 a second, far below what is offered
DOWN = "421 4.3.2 service not available"

POLICY = """
sources:
  tx-1: {{buckets: [transactional]}}
  news-1: {{buckets: [marketing, bulk]}}
  smarthost: {{kind: relay, host: localhost, port: {port}, tls: none, buckets: [marketing, bulk]}}
pools:
  transactional: {{sources: [tx-1]}}
  news: {{sources: [news-1]{relays}}}
rules:
  - match: {{bucket: transactional}}
    action: {{pool: transactional}}
  - name: rest
    action: {{pool: news}}
providers:
  gmail: {{rate: 30000/min, connections: 8, per_connection: 1000, tls: opportunistic}}
buckets:
  bulk: {{recipient_limit: none}}
"""


class Provider(Sink):
    """Slow, until it is down."""

    down = False

    def reply(self, recipient: str, times: int) -> str:
        if self.down:
            return DOWN
        time.sleep(SLOW)
        return OK


@contextmanager
def saturated(folder: Path, *, relays: str = "") -> Iterator[tuple[House, Provider, Sink]]:
    """A house whose bulk queue is full and whose provider takes what it can."""
    primary = Provider()
    primary.rcpt = primary.reply
    with serving(Sink()) as relay, serving(primary):
        policy = POLICY.format(port=relay.port, relays=relays)
        env = {"MAILWEIR_DNS__MX_MAP": json.dumps({"gmail.com": [f"127.0.0.1:{primary.port}"]})}
        with house(folder, policy=policy, env=env) as home:
            home.mail_list([f"user{i}@gmail.com" for i in range(JOBS)])
            home.wait("mail on its way", lambda: len(primary.times("stored")) > 300)
            yield home, primary, relay


def fail(home: House, primary: Provider) -> float:
    """The provider fails; real time at which its breaker was seen open."""
    waiting = home.states()
    assert waiting["dispatched"] > 0, "the queue is full"
    # held: the worker had no connection free for it within its wait, and it waits at the router for its turn
    more = waiting["accepted"] + waiting["due"] + waiting["held"]
    assert more > 1_000, f"and more waits for a place in it: {dict(waiting)}"
    primary.down = True
    client, path = home.redis(), keys.path_state("news-1", "gmail")
    home.wait("the breaker", lambda: client.hget(path, "phase") == b"open", longest=30)
    return time.time()


def routes(home: House, since: float) -> list[tuple[int, float, str, str | None]]:
    """Decisions since a real time (the policy clock runs at rate 1): job, time, source, why it came back."""
    database = home.database()
    try:
        with database.read() as conn:
            rows = conn.exec_driver_sql(
                "SELECT job_id, at, source, json_extract(body, '$.job.reason') FROM decisions "
                "WHERE outcome = 'routed' AND at > ?",
                (since,),
            ).all()
    finally:
        database.close()
    return [(int(r[0]), float(r[1]), str(r[2]), r[3]) for r in rows]


def test_a_full_queue_moves_to_the_relay(tmp_path: Path) -> None:
    with saturated(tmp_path, relays=", relays: [smarthost]") as (home, primary, relay):
        opened = fail(home, primary)
        home.wait("traffic on the relay", lambda: len(relay.times("stored")) >= 100)
        # longer than anything may go on, so that what is late is seen
        home.wait("some time", lambda: time.time() > opened + 2 * WITHIN)
        first = relay.times("stored")[0] - opened
        last = max(at for at in primary.times("rcpt")) - opened
        print(f"first mail by the relay {first:.2f} s, last attempt on the path {last:.2f} s")
        assert first <= WITHIN
        assert last <= WITHIN
        made = routes(home, opened - 30)

    back = [row for row in made if row[3] == "path shut: news-1 to gmail"]
    assert len(back) > 50, "what stood in the queue came back"
    assert {source for _, _, source, _ in back} == {"smarthost"}, "the router knows by then"
    bounces = Counter(job for job, *_ in back)
    assert max(bounces.values()) <= 3, "nothing goes back and forth"


def test_without_another_way_jobs_wait_at_the_router(tmp_path: Path) -> None:
    with saturated(tmp_path) as (home, primary, _):
        opened = fail(home, primary)

        def gone() -> bool:
            states = home.states()
            return not states["dispatched"] and not states["sending"]

        home.wait("an empty queue", gone, longest=WITHIN + 10)
        print(f"queue empty after {time.time() - opened:.2f} s")
        home.wait("some time", lambda: time.time() > opened + 2 * WITHIN)
        made = routes(home, opened)
        assert max(primary.times("rcpt")) <= opened + WITHIN
        states = home.states()

    late = [row for row in made if row[1] > opened + 2.0]
    assert not late, "no worker is asked while the router knows the path is shut"
    assert max(Counter(job for job, *_ in made).values(), default=0) <= 3
    assert states["held"] > 50
    assert (
        states["sent"] + states["held"] + states["due"] + states["deferred"] + states["accepted"]
        == JOBS
    )
