"""Every way a remote can misbehave that the corpus names (P items), over real sockets, timeouts scaled."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.unit.delivery.scripted import Act, Answer, Scripted, offer
from tests.unit.delivery.sending import BODY, PATIENCE, Sender, hasty, hop, mail, mails

LONG = b"250-" + b"x" * 10_000_000 + b"\r\n250 ok\r\n"
ENDLESS = b"250-more\r\n" * 400_000


async def one(
    answers: dict[str, Answer | list[Answer]], hosts: int = 1, **options: Any
) -> tuple[Any, Scripted]:
    """The result of one mail to ``hosts`` addresses of one such server."""
    async with Scripted(answers) as server, Sender(**hasty(answers)) as sender:
        hops = [hop(server.port, f"mx{i}.test") for i in range(hosts)]
        result = await asyncio.wait_for(sender.one(hops, **options), PATIENCE)
    return result, server


@pytest.mark.parametrize(
    ("answers", "stage", "code", "error"),
    [
        ({"banner": "421 4.3.2 busy"}, "banner", 421, None),  # P1
        ({"banner": "554 5.7.1 go away"}, "banner", 554, None),  # P2
        ({"mail": "450 4.2.1 later"}, "mail", 450, None),
        ({"mail": "550 5.7.1 no"}, "mail", 550, None),
        ({"rcpt": "450 4.2.0 greylisted", "data": "554 5.5.1 no rcpt"}, "rcpt", 450, None),  # P6
        ({"rcpt": "550 5.1.1 unknown", "data": "503 5.5.1 no rcpt"}, "rcpt", 550, None),  # P8
        ({"data": "451 4.3.0 later"}, "data", 451, None),
        ({"dot": "554 5.7.1 spam"}, "dot", 554, None),  # P9
        ({"dot": "452 4.3.1 full"}, "dot", 452, None),
        ({"mail": "421 4.7.0 closing"}, "mail", 421, None),
        ({"mail": "221 bye"}, "mail", 221, None),  # P23
        ({"ehlo": "554 no"}, "ehlo", 554, None),
        ({"banner": Act.SILENCE}, "banner", None, "timeout"),
        ({"ehlo": Act.SILENCE}, "ehlo", None, "timeout"),
        ({"mail": Act.SILENCE}, "mail", None, "timeout"),
        ({"rcpt": Act.SILENCE}, "rcpt", None, "timeout"),
        ({"data": Act.SILENCE}, "data", None, "timeout"),  # P14
        ({"banner": Act.RESET}, "banner", None, "reset"),
        ({"ehlo": Act.CLOSE}, "ehlo", None, "closed"),
        ({"mail": Act.CLOSE}, "mail", None, "closed"),
        ({"rcpt": Act.RESET}, "rcpt", None, "reset"),
        ({"data": "250 ok"}, "data", None, "malformed"),  # P15
        ({"mail": "354 go"}, "mail", None, "malformed"),
        ({"banner": b"HTTP/1.1 400 Bad Request\r\n\r\n"}, "banner", None, "malformed"),  # P20
        ({"banner": b"\x16\x03\x01\x02\x00\xff\xfe\x00\n"}, "banner", None, "malformed"),  # P19
        ({"mail": b"999 what\r\n"}, "mail", None, "malformed"),  # P21
        ({"mail": b"099 what\r\n"}, "mail", None, "malformed"),
        ({"mail": b"2 50 ok\r\n"}, "mail", None, "malformed"),
        ({"mail": b"250_ok\r\n"}, "mail", None, "malformed"),
        ({"mail": b"25\r\n"}, "mail", None, "malformed"),
        ({"mail": b"250-a\r\n251 b\r\n"}, "mail", None, "malformed"),
        ({"rcpt": LONG}, "rcpt", None, "malformed"),  # P17
        ({"ehlo": ENDLESS}, "ehlo", None, "malformed"),  # P18
        ({"ehlo": b"250 " + b"y" * 40_000}, "ehlo", None, "malformed"),
    ],
)
async def test_one_fault(
    answers: dict[str, Answer | list[Answer]], stage: str, code: int | None, error: str | None
) -> None:
    result, _ = await one(answers)
    assert (result.stage, result.code, result.error) == (stage, code, error)
    assert not result.accepted
    assert not result.uncertain
    assert len(result.reply) <= 2000
    assert result.reply.isprintable()


@pytest.mark.parametrize("act", [Act.RESET, Act.CLOSE, Act.SILENCE])
async def test_lost_after_the_dot_is_uncertain_and_never_moves(act: Act) -> None:
    result, server = await one({"dot": act}, hosts=2)  # P16
    assert result.uncertain
    assert (result.stage, result.code) == ("dot", None)
    assert len(server.mails) == 1, "a mail that may have arrived went to another host"


@pytest.mark.parametrize("act", [Act.RESET, Act.CLOSE, Act.SILENCE, "421 4.3.2 going down"])
async def test_a_mail_behind_a_lost_dot_begins_anew(act: Answer) -> None:
    """What ended the session says nothing about the mail whose commands waited behind the body."""
    answers: dict[str, Answer | list[Answer]] = {"dot": [act, "250 ok"]}
    async with Scripted(answers) as server, Sender(**hasty(answers)) as sender:
        results = {r.job_id: r for r in await sender.send(server.port, mails(3))}
    assert not results[1].accepted
    assert results[1].stage == "dot"
    assert [results[2].accepted, results[3].accepted] == [True, True]
    assert server.connections == 2
    assert [m.rcpt for m in server.mails] == [f"user{i}@d.test" for i in (1, 2, 3)]


async def test_garbage_after_the_dot_is_uncertain() -> None:
    result, _ = await one({"dot": b"what?\r\n"})
    assert result.uncertain
    assert result.error == "malformed"


@pytest.mark.parametrize(
    "banner", ["421 busy", "554 no", Act.CLOSE, Act.SILENCE, b"HTTP/1.1 400 Bad\r\n"]
)
async def test_a_host_that_cannot_be_used_is_left_for_the_next(banner: Answer) -> None:
    answers: dict[str, Answer | list[Answer]] = {"banner": banner}
    async with Scripted(answers) as bad, Scripted() as good, Sender(**hasty(answers)) as sender:
        results = await sender.send([hop(bad.port, "mx1.test"), hop(good.port)], mails(5))
    assert all(result.accepted for result in results)
    assert len(results) == len(good.mails) == 5
    assert bad.connections == 1, "a dead host is asked once"


async def test_refused_connection_moves_to_the_next_host() -> None:
    async with Scripted() as closed:
        port = closed.port
    async with Scripted() as good, Sender() as sender:
        result = await sender.one([hop(port), hop(good.port)])
        assert result.accepted
        refused = await sender.one([hop(port)])
    assert (refused.stage, refused.error) == ("connect", "refused")


async def test_554_on_all_hosts_reports_the_banner_stage() -> None:
    result, server = await one({"banner": "554 no"}, hosts=3)
    assert (result.stage, result.code) == ("banner", 554)
    assert server.connections == 3


async def test_421_in_the_middle_moves_the_rest() -> None:
    async with (
        Scripted({"mail": ["250 ok", "421 too many"]}) as tired,
        Scripted() as other,
        Sender() as sender,
    ):
        results = await sender.send([hop(tired.port, "mx1.test"), hop(other.port)], mails(6))
    assert len(results) == 6
    assert all(result.accepted for result in results)
    # it took one mail, so a fresh connection was tried; that took none, so the host was left
    assert (len(tired.mails), len(other.mails)) == (1, 5)


async def test_server_that_takes_one_mail_per_connection_gets_them_all() -> None:
    async with (
        Scripted({"mail": ["250 ok", "421 one only"] * 10}) as server,
        Sender() as sender,
    ):
        results = await sender.send(server.port, mails(4))
    assert [result.accepted for result in results] == [True] * 4
    assert len({m.connection for m in server.mails}) == 4


async def test_354_with_no_recipient_gets_a_lone_dot() -> None:
    async with (
        Scripted({"rcpt": ["550 5.1.1 no", "250 ok"], "dot": ["554 no rcpt", "250 ok"]}) as server,
        Sender() as sender,
    ):
        results = await sender.send(server.port, mails(2))
    by_job = {result.job_id: result for result in results}
    assert (by_job[1].stage, by_job[1].code) == ("rcpt", 550)
    assert by_job[2].accepted
    assert [m.data for m in server.mails] == [BODY], "no body followed a refused recipient"


async def test_refused_mails_between_good_ones_keep_the_session() -> None:
    async with (
        Scripted(
            {
                "rcpt": ["250 ok", "550 5.1.1 no", "250 ok", "450 4.2.2 full", "250 ok"],
                "data": ["354 go", "503 no rcpt", "354 go", "503 no rcpt", "354 go"],
            }
        ) as server,
        Sender() as sender,
    ):
        results = await sender.send(server.port, mails(5))
    codes = {result.job_id: (result.stage, result.code) for result in results}
    assert codes == {
        1: ("dot", 250), 2: ("rcpt", 550), 3: ("dot", 250), 4: ("rcpt", 450), 5: ("dot", 250),
    }  # fmt: skip
    assert server.connections == 1
    assert [m.rcpt for m in server.mails] == ["user1@d.test", "user3@d.test", "user5@d.test"]
    assert server.commands.count("RSET") == 2
    for result in results:
        steps = json.loads(result.conversation or "")["steps"]
        first = next(text for _, who, text in steps if who == ">" and not text.startswith("EHLO"))
        assert (first == "RSET") == (result.job_id in (3, 5)), "its reply has no command otherwise"


async def test_a_refused_rset_gets_a_fresh_session() -> None:
    for extensions in ((), ("PIPELINING",)):
        answers: dict[str, Answer | list[Answer]] = {
            "ehlo": offer(*extensions),
            "rcpt": ["550 5.1.1 no", "250 ok"],
            "data": ["503 no rcpt", "354 go"] if extensions else "354 go",
            "rset": "500 what?",
        }
        async with Scripted(answers) as server, Sender() as sender:
            results = await sender.send(server.port, mails(2))
        stages = {r.job_id: (r.stage, r.code) for r in results}
        assert stages == {1: ("rcpt", 550), 2: ("dot", 250)}


async def test_unsolicited_words_between_mails_close_the_session() -> None:
    async with (
        Scripted({"dot": [b"250 ok\r\n250 and another\r\n", "250 ok"]}) as server,
        Sender() as sender,
    ):
        (first,) = await sender.send(server.port, [mail(1)])
        (second,) = await sender.send(server.port, [mail(2)])
    assert first.accepted
    assert second.accepted
    assert server.connections == 2


async def test_size_is_refused_before_data() -> None:  # P24
    result, server = await one({"ehlo": offer("PIPELINING", "SIZE 20", "8BITMIME")})
    assert result.reply.startswith("552 5.3.4")
    assert not [c for c in server.commands if c.startswith(("MAIL", "DATA"))]


async def test_smtputf8_is_needed_and_not_offered() -> None:
    async with Scripted({"ehlo": offer("PIPELINING", "8BITMIME")}) as server, Sender() as sender:
        (result,) = await sender.send(server.port, [mail(rcpt="jürgen@d.test")])
    assert result.reply.startswith("550 5.6.7")
    assert not server.mails


async def test_many_ehlo_keywords_are_capped() -> None:  # P25
    keywords = [f"X{i}" for i in range(2000)]
    result, _ = await one({"ehlo": offer("PIPELINING", *keywords)})
    assert result.accepted


async def test_no_pipelining_means_one_command_at_a_time() -> None:
    async with Scripted({"ehlo": offer("SIZE 0")}) as server, Sender() as sender:
        results = await sender.send(server.port, mails(3))
    assert all(result.accepted for result in results)
    assert len(server.mails) == 3


async def test_ehlo_unknown_falls_back_to_helo() -> None:
    result, server = await one({"ehlo": "502 5.5.1 what?"})
    assert result.accepted
    assert server.commands[1].startswith("HELO ")


async def test_early_refusal_while_the_body_is_written() -> None:
    big = BODY + (b"x" * 70 + b"\r\n") * 60_000
    async with (
        Scripted({"data": b"354 go\r\n552 5.3.4 too big\r\n"}) as server,
        Sender() as sender,
    ):
        (result,) = await sender.send(server.port, [mail(data=big)])
    assert (result.stage, result.code, result.dot_sent) == ("data", 552, False)


async def test_a_remote_that_takes_no_bytes_is_left() -> None:
    big = BODY + (b"x" * 70 + b"\r\n") * 400_000
    answers: dict[str, Answer | list[Answer]] = {
        "ehlo": offer("PIPELINING", "SIZE 0"),
        "data": Act.DEAF,
    }
    async with Scripted(answers) as server, Sender(**hasty(answers)) as sender:
        (result,) = await sender.send(server.port, [mail(data=big)])
    assert (result.error, result.dot_sent) == ("timeout", False)


async def test_forged_log_lines_arrive_as_one_escaped_line() -> None:  # P22
    result, _ = await one({"rcpt": b"550 no \x1b[31m red\x00\r\n", "data": "503 no"})
    assert result.reply == "550 no \\x1b[31m red\\x00"


async def test_the_recipient_is_masked_everywhere() -> None:
    reply = "550 5.1.1 <Jane.Doe@d.test>: jane.doe unknown"
    async with Scripted({"rcpt": reply}) as server, Sender() as sender:
        (result,) = await sender.send(server.port, [mail(rcpt="jane.doe@d.test")])
    assert "jane" not in (result.reply + (result.conversation or "")).lower()
    assert result.reply == "550 5.1.1 <j***@d.test>: j*** unknown"
