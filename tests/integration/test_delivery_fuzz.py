"""Whatever a remote says, every envelope gets exactly one result, soon, and no mail is shown as sent
that the remote did not take."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.delivery.scripted import DEFAULTS, Act, Answer, Scripted
from tests.unit.delivery.sending import GIVEN_UP, PATIENCE, PHASES, Sender, hop, mails

STAGES = ("banner", "ehlo", "mail", "rcpt", "data", "dot", "rset")
ANSWER: st.SearchStrategy[Answer] = st.one_of(
    st.sampled_from(
        [
            "250 ok",
            "354 go",
            "421 bye",
            "450 no",
            "550 no",
            "221 bye",
            "250-a",
            "",
            "999 x",
            "220 x",
        ]
    ),
    st.sampled_from([Act.RESET, Act.CLOSE, Act.SILENCE]),
    st.binary(max_size=60),
    st.sampled_from([b"250 a\r\n250 b\r\n", b"354 a\r\n250 b\r\n", b"250 a", b"\r\n", b"2"]),
)
SCRIPT = st.fixed_dictionaries(
    {},
    optional={
        stage: st.lists(st.one_of(st.just(DEFAULTS[stage]), ANSWER), min_size=1, max_size=4)
        for stage in STAGES
    },
)


@settings(max_examples=60)
@given(SCRIPT, st.integers(1, 3))
def test_one_result_each_and_never_a_hang(script: dict[str, list[Answer]], lanes: int) -> None:
    async def run() -> None:
        answers: dict[str, Answer | list[Answer]] = dict(script)
        short: Any = dict.fromkeys(("banner", "helo", "mail", "rcpt", "data", "dot"), 0.05)
        async with Scripted(answers) as server, Scripted() as good, Sender(**short) as sender:
            hops = [hop(server.port, "mx1.test"), hop(good.port, "mx2.test")]
            async with asyncio.timeout(PATIENCE):
                results = await sender.send(hops, mails(4), connections=lanes)
        assert sorted(r.job_id for r in results) == [1, 2, 3, 4]
        arrived = {m.rcpt for m in server.mails} | {m.rcpt for m in good.mails}
        for result in results:
            if result.accepted:
                assert f"user{result.job_id}@d.test" in arrived
        for number in range(1, 5):
            rcpt = f"user{number}@d.test"
            copies = sum(m.rcpt == rcpt for m in (*server.mails, *good.mails))
            assert copies <= 1, "one deliver call handed the same mail over twice"

    asyncio.run(run())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("cut", [1, 3, 5])
async def test_replies_cut_short_and_left_there(stage: str, cut: int) -> None:
    answer = str(DEFAULTS[stage]).encode()[:cut]
    short: Any = dict.fromkeys(PHASES, GIVEN_UP)  # it may be the next reply that does not come
    async with Scripted({stage: answer}) as server, Sender(**short) as sender:
        async with asyncio.timeout(PATIENCE):
            results = await sender.send([hop(server.port)], mails(2))
    assert len(results) == 2
