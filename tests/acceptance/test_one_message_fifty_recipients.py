"""One message, fifty recipients, a remote that takes some, refuses some and puts some off: only these are
tried again (R14)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.acceptance.house import POLICY, house
from tests.acceptance.sink import OK, Sink, serving

RECIPIENTS = [f"{('good', 'later', 'unknown')[i % 3]}{i}@many.example" for i in range(50)]
RATE = 300  # policy seconds a real second


def kind(recipient: str) -> str:
    return recipient.partition("@")[0].rstrip("0123456789")


def rcpt(recipient: str, times: int) -> str:
    match kind(recipient):
        case "later" if times < 2:
            return "450 4.2.0 greylisted, try again in 60 seconds"
        case "unknown":
            return "550 5.1.1 user unknown"
        case _:
            return OK


@pytest.mark.parametrize("bucket", ["transactional", "bulk"])
def test_only_the_deferred_are_tried_again(bucket: str, tmp_path: Path) -> None:
    sink = Sink(rcpt=rcpt)
    with serving(sink):
        env = {
            "MAILWEIR_CLOCK__RATE": str(RATE),
            "MAILWEIR_DNS__MX_MAP": json.dumps({"many.example": [f"127.0.0.1:{sink.port}"]}),
        }
        with house(tmp_path, policy=POLICY, env=env) as home:
            jobs = home.send(RECIPIENTS, bucket=bucket)
            assert len(jobs) == len(RECIPIENTS)
            home.wait_ended(len(RECIPIENTS))
            states = {name: home.state_of(job) for job, name in zip(jobs, RECIPIENTS, strict=True)}
    expected = {"good": ("sent", 1, 1), "later": ("sent", 3, 1), "unknown": ("bounced", 1, 0)}
    for name in RECIPIENTS:
        state, asked, stored = expected[kind(name)]
        assert (states[name], sink.asked[name], sink.stored[name]) == (state, asked, stored), name
    assert Counter(states.values()) == {"sent": 34, "bounced": 16}
