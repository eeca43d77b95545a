"""The sink stores a mail and resets, or says nothing more (RFC 1047), 1,000 times: what is worth a second copy
gets at most one, what is not gets none, and nothing changes its way (R13, N41)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from mailweir.contracts.ids import parse_id
from tests.acceptance.house import house
from tests.acceptance.sink import After, Sink, serving

EACH = 500  # of a bucket that resends, and of one that does not
RATE = 60  # policy seconds a real second: the 15 minutes before a second copy are 15 s

POLICY = """
sources:
  tx-1: {buckets: [transactional]}
  tx-2: {buckets: [transactional]}
  news-1: {buckets: [marketing, bulk]}
  news-2: {buckets: [marketing, bulk]}
pools:
  transactional: {sources: [tx-1, tx-2]}
  news: {sources: [news-1, news-2]}
rules:
  - match: {bucket: transactional}
    action: {pool: transactional}
  - name: rest
    action: {pool: news}
buckets:
  transactional: {recipient_limit: none, retry: {uncertain: resend}}
  marketing: {recipient_limit: none}
  bulk: {recipient_limit: none, retry: {uncertain: leave}}
"""


def after(recipient: str, times: int) -> After:
    """Every first copy is lost track of, every twentieth mail's second copy too."""
    number = int(recipient.partition("@")[0][1:])
    if times == 0 or number % 20 == 0:
        return "silence" if number % 30 == 0 else "reset"  # it holds a connection for seconds
    return "reply"


def recipients(kind: str) -> list[str]:
    # four mails a domain: a path that fails five times in a row is closed, which is another scenario
    return [f"{kind}{i}@{kind}{i // 4}.example" for i in range(EACH)]


def test_lost_after_the_dot(tmp_path: Path) -> None:
    sink = Sink(after=after)
    with serving(sink):
        env = {
            "MAILWEIR_CLOCK__RATE": str(RATE),
            "MAILWEIR_SMTP__DOT": "3",  # a busy machine keeps no good reply as long
            "MAILWEIR_DNS__MX_MAP": json.dumps({"*": [f"127.0.0.1:{sink.port}"]}),
        }
        with house(tmp_path, policy=POLICY, env=env) as home:
            again, once = recipients("t"), recipients("b")
            jobs = home.send(again) + home.send(once, bucket="bulk")
            assert len(jobs) == 2 * EACH
            name_of = dict(zip((parse_id(job) for job in jobs), again + once, strict=True))
            database = home.database()

            def rows() -> list[tuple[int, str, float | None]]:
                with database.read() as conn:
                    return [
                        (row.id, row.state, row.due_at)
                        for row in conn.exec_driver_sql("SELECT id, state, due_at FROM jobs")
                    ]

            def ended() -> bool:
                return all(
                    state == "sent" or (state == "uncertain" and due is None)
                    for _, state, due in rows()
                )

            home.wait("every job's end", ended, longest=400)
            states = {name_of[number]: state for number, state, _ in rows()}
            with database.read() as conn:
                attempts = conn.exec_driver_sql("SELECT job_id, source FROM attempts").all()
            database.close()

    # a bucket that resends: at least one copy, at most one more
    copies = Counter({name: sink.stored[name] for name in again})
    assert set(copies.values()) == {2}, "the first copy was always lost track of"
    twice_lost = {name for name in again if int(name.partition("@")[0][1:]) % 20 == 0}
    assert {name for name in again if states[name] == "uncertain"} == twice_lost
    assert {states[name] for name in again if name not in twice_lost} == {"sent"}
    # a bucket that does not: exactly one
    assert {sink.stored[name] for name in once} == {1}
    assert {states[name] for name in once} == {"uncertain"}
    # nothing changed its way, nothing came again before a DSN had its 15 minutes
    sources: dict[int, set[str]] = {}
    for row in attempts:
        sources.setdefault(row.job_id, set()).add(row.source)
    assert len(sources) == 2 * EACH
    assert {len(used) for used in sources.values()} == {1}
    assert len(set().union(*sources.values())) == 4, "all sources were in use"
    times: dict[str, list[float]] = {}
    for one in sink.seen:
        if one.what == "stored":
            times.setdefault(one.recipient, []).append(one.at)
    assert min((at[1] - at[0]) * RATE for at in times.values() if len(at) > 1) >= 900
