"""The 112 cells of tests/data/fault_grid.yaml: a server that misbehaves, the real transport, the real
classification, the real decision; timeouts scaled down, everything else as in production."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import yaml

from mailweir.contracts.lifecycle import State
from mailweir.contracts.policy import Retry
from mailweir.contracts.route import Orders
from mailweir.mail.classify import classify
from tests.services.authority import Authority
from tests.unit.delivery.scripted import DEFAULTS, Act, Answer, Scripted, offer
from tests.unit.delivery.sending import PATIENCE, Sender, hasty, hop, mail
from tests.unit.workers.test_outcome import MX, NOW, job
from workers.delivery.types import Result
from workers.policy.outcome import UNCERTAIN_WAIT, Verdict, decide

GRID = yaml.safe_load((Path(__file__).parents[1] / "data/fault_grid.yaml").read_text())
CELLS = [
    (fault, stage, cell["is"].split())
    for fault, row in GRID["faults"].items()
    for stage, cell in row.items()
]
WRONG = {"data": "250 ok", "starttls": "250 ok"}  # elsewhere 354
Script = dict[str, Answer | list[Answer]]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return Authority(tmp_path_factory.mktemp("ca")).issue("mx.test").context()


def test_the_grid_is_whole() -> None:
    assert len(GRID["faults"]) == 16
    assert all(list(row) == GRID["stages"] for row in GRID["faults"].values())
    assert len(CELLS) == 112
    for row in GRID["faults"].values():
        for cell in row.values():
            assert cell["why"].startswith("RFC")


def answer(fault: str, stage: str, good: str) -> Answer:
    """What the server does at ``stage``."""
    code = good[:3].encode()
    raw: dict[str, Answer] = {
        "silence": Act.SILENCE,
        "half_line": Act.HALF,
        "reset": Act.RESET,
        "close": Act.CLOSE,
        "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
        "wrong_code": WRONG.get(stage, "354 go ahead"),
        "oversized": code + b" " + b"y" * 40_000,
        "endless": (code + b"-more\r\n") * 5_000,
        "surplus": f"{good}\r\n250 2.0.0 one more\r\n".encode(),
    }
    return raw.get(fault, fault)


def script(fault: str, stage: str, *, pipelining: bool, once: bool) -> Script:
    keywords = ["SIZE 20000000", "8BITMIME", *(["PIPELINING"] if pipelining else [])]
    if stage == "starttls":
        keywords.append("STARTTLS")
    made: Script = {"ehlo": offer(*keywords)}
    good = str(made.get(stage, DEFAULTS[stage]))
    bad = answer(fault, stage, good)
    made[stage] = [bad, good] if once else bad
    if pipelining and fault[0] in "45" and stage in ("mail", "rcpt"):
        # what a server says to the commands that were on their way already
        for later in ("rcpt", "data") if stage == "mail" else ("data",):
            no = "503 5.5.1 bad sequence of commands"
            made[later] = [no, DEFAULTS[later]] if once else no
    return made


def verdict(result: Result, retry: Retry) -> Verdict:
    """As the worker's engine does it."""
    seen = None
    if not result.accepted and result.code is not None:
        seen = classify(result.reply, stage=result.stage, first_contact=True)
    return decide(job(), Orders(), result, seen, retry, source=MX, now=NOW, chance=0.5)


def retry_class(found: Verdict) -> str:
    match found.state:
        case State.SENT:
            return "none"
        case State.BOUNCED:
            return "no"
        case State.UNCERTAIN:
            return "leave" if found.due_at is None else "resend"
        case _ if found.layer is not None:
            return found.layer
        case _:
            return "later" if found.stay_with is None else "same"


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "stepwise"])
@pytest.mark.parametrize(
    ("fault", "stage", "cell"), CELLS, ids=[f"{f[:9]}-{s}" for f, s, _ in CELLS]
)
async def test_cell(
    fault: str, stage: str, cell: list[str], pipelining: bool, tls: ssl.SSLContext
) -> None:
    state, retry, session, host = cell
    mode = "required" if stage == "starttls" else "opportunistic"

    # one host: what becomes of the job, and whether its session is used again
    once = script(fault, stage, pipelining=pipelining, once=True)
    async with Scripted(once, tls=tls) as server, Sender(**hasty(once)) as sender:
        result = await asyncio.wait_for(sender.one(server.port, tls=mode), PATIENCE)
        found = verdict(result, Retry())
        assert (found.state, retry_class(found)) == (State(state), retry), result
        arrived = len(server.mails)
        after = (await sender.send(server.port, [mail(2)], tls=mode))[0]
        assert after.accepted, after
        assert ("open" if server.connections == 1 else "closed") == session
        assert len(server.mails) == arrived + 1
    if found.state is State.DEFERRED:
        assert found.due_at is not None
        assert found.due_at > NOW
    if found.state is State.UNCERTAIN:
        assert arrived == 1
        again = verdict(result, Retry(uncertain="resend"))
        assert (again.stay_with, again.layer) == (MX.name, None)
        assert again.due_at == NOW + UNCERTAIN_WAIT
    if found.suppress is not None:
        assert found.state is State.BOUNCED

    # two hosts: whether the second one gets it
    always = script(fault, stage, pipelining=pipelining, once=False)
    async with (
        Scripted(always, tls=tls) as bad,
        Scripted({"ehlo": offer("STARTTLS")}, tls=tls) as good,
        Sender(**hasty(always)) as sender,
    ):
        hops = [hop(bad.port, "mx1.test"), hop(good.port, "mx2.test")]
        result = await asyncio.wait_for(sender.one(hops, tls=mode), PATIENCE)
    assert ("next" if good.mails else "stay") == host, result
    assert result.accepted == (host == "next" or state == "sent")
    assert (result.layer == "connection") == (host == "next")
