"""Accept: idempotent, grouped, safe against races."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from mailweir.contracts.ids import format_id, new_id
from mailweir.contracts.job import Accepted, Content, ContentKind
from mailweir.contracts.lifecycle import State
from mailweir.mail.address import canonical, parse
from mailweir.plumbing.clock import Clock
from mailweir.spool.store import Conflict, Spool, Unstorable
from tests.contract.spool.helpers import message


def test_what_was_accepted_is_there(spool: Spool) -> None:
    m = message("Jane.Doe@gmail.com", "b@gmail.com", key="k", campaign="spring", expires_at=9e9)
    (answer,) = spool.accept([m])
    assert isinstance(answer, Accepted)
    assert answer.id == format_id(m.id)
    assert not answer.duplicate
    assert [line.id for line in answer.jobs] == [format_id(j.id) for j in m.jobs]
    jobs = spool.jobs_of(m.id)
    assert [j.id for j in jobs] == [j.id for j in m.jobs]
    job = jobs[0]
    assert job.recipient == "Jane.Doe@gmail.com"
    assert (job.state, job.due_at, job.expires_at) == (State.ACCEPTED, m.send_at, 9e9)
    assert (job.attempts, job.crashes, job.first_attempt_at) == (0, 0, None)
    assert job.variables == {"name": "Zoë"}
    assert job.meta == m.meta
    assert spool.contents([job.content_id]) == {m.content.id: m.content}
    assert [j.id for j in spool.search(recipient="jane.doe@gmail.com")] == [job.id]


@pytest.mark.parametrize("text", ["Jane@GMAIL.com", "a+B@exämple.com", "x.Y@sub.example.org"])
def test_recipient_key_is_the_canonical_address(spool: Spool, text: str) -> None:
    m = message(parse(text).text)
    spool.accept([m])
    assert [j.id for j in spool.search(recipient=canonical(text))] == [m.jobs[0].id]


def test_same_key_same_answer(spool: Spool) -> None:
    first = message("a@gmail.com", "b@gmail.com", key="k1")
    again = message("a@gmail.com", "b@gmail.com", key="k1")
    (one,) = spool.accept([first])
    (two,) = spool.accept([again])
    assert isinstance(one, Accepted)
    assert two == msgspec.structs.replace(one, duplicate=True)
    assert spool.jobs_of(again.id) == []
    assert spool.contents([again.content.id]) == {}


def test_same_key_other_content_is_a_conflict_and_harms_nobody(spool: Spool) -> None:
    spool.accept([message("a@gmail.com", key="k1")])
    good = message("c@gmail.com", key="k2")
    answers = spool.accept(
        [message("x@gmail.com"), message("a@gmail.com", key="k1", body=b"other"), good]
    )
    assert isinstance(answers[0], Accepted)
    assert answers[1] == Conflict("acme", "k1")
    assert isinstance(answers[2], Accepted)
    assert len(spool.jobs_of(good.id)) == 1


def test_keys_belong_to_a_tenant(spool: Spool) -> None:
    one, two = spool.accept(
        [message("a@gmail.com", key="k"), message("a@gmail.com", key="k", tenant="b", body=b"y")]
    )
    assert isinstance(one, Accepted)
    assert isinstance(two, Accepted)
    assert not two.duplicate


def test_same_key_twice_in_one_group(spool: Spool) -> None:
    first = message("a@gmail.com", key="k")
    answers = spool.accept(
        [first, message("a@gmail.com", key="k"), message("a@gmail.com", key="k", body=b"other")]
    )
    assert isinstance(answers[0], Accepted)
    assert isinstance(answers[1], Accepted)
    assert answers[1].duplicate
    assert answers[1].id == format_id(first.id)
    assert answers[2] == Conflict("acme", "k")


def test_group_whose_first_conflicts_and_second_agrees_with_an_earlier_call(spool: Spool) -> None:
    first = message("a@gmail.com", key="k")
    spool.accept([first])
    answers = spool.accept(
        [message("a@gmail.com", key="k", body=b"other"), message("a@gmail.com", key="k")]
    )
    assert answers[0] == Conflict("acme", "k")
    assert isinstance(answers[1], Accepted)
    assert answers[1].id == format_id(first.id)


def test_large_contents_are_accepted_like_small_ones(spool: Spool) -> None:
    """On PostgreSQL their plan is a kept one, for that transaction only."""
    large = [message("a@gmail.com", key=f"k{n}", body=b"x" * 40_000) for n in range(3)]
    again = message("a@gmail.com", key="k1", body=large[1].content.body)
    answers = spool.accept([*large, again, message("a@gmail.com", key="k2", body=b"other")])
    assert [isinstance(answer, Accepted) for answer in answers] == [True] * 4 + [False]
    assert {content.id for content in spool.contents([m.content.id for m in large]).values()} == {
        m.content.id for m in large
    }
    if spool.database.dialect_name == "postgresql":
        with spool.database.write() as conn:
            mode = conn.exec_driver_sql("SHOW plan_cache_mode").scalar()
        assert mode == "force_custom_plan"


def test_a_key_is_forgotten_after_its_hours(spool: Spool) -> None:
    # a clock that is more than 73 h ahead of the one of the first call
    late = Spool(spool.database, clock=Clock(origin=time.time() - 1.0, rate=73 * 3600.0))
    first = message("a@gmail.com", key="k")
    spool.accept([first])
    second = message("a@gmail.com", key="k", body=b"other")
    (answer,) = late.accept([second])
    assert isinstance(answer, Accepted)
    assert not answer.duplicate
    assert answer.id == format_id(second.id)
    assert len(spool.jobs_of(first.id)) == 1


def test_200_threads_with_equal_keys_get_one_answer(spool: Spool) -> None:
    start = threading.Barrier(200)

    def one(number: int) -> Accepted | Conflict | Unstorable:
        m = message("a@gmail.com", "b@gmail.com", key="race")
        other = message(f"u{number}@gmail.com", key=f"own-{number % 7}")
        group = [m, other] if number % 2 else [other, m]
        start.wait(60)
        answers = spool.accept(group)
        return answers[group.index(m)]

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(one, range(200)))
    assert all(isinstance(a, Accepted) for a in answers)
    assert len({(a.id, a.jobs) for a in answers if isinstance(a, Accepted)}) == 1
    assert sum(not a.duplicate for a in answers if isinstance(a, Accepted)) == 1
    assert len(spool.search(recipient="a@gmail.com")) == 1
    assert spool.counts() == {"bulk": {"accepted": 2 + 7}}


def test_accepting_the_very_same_message_again_stores_nothing_twice(spool: Spool) -> None:
    m = message("a@gmail.com")
    assert spool.accept([m]) == spool.accept([m])
    assert len(spool.jobs_of(m.id)) == 1


def test_a_group_of_new_old_repeated_and_forgotten_ones(spool: Spool) -> None:
    earlier, stored, fresh = (message("a@gmail.com", key=key) for key in ("old", None, "new"))
    spool.accept([earlier, stored])
    late = Spool(spool.database, clock=Clock(origin=time.time() - 1.0, rate=73 * 3600.0))
    forgotten = message("a@gmail.com", key="old", body=b"other")
    answers = late.accept([stored, forgotten, fresh, message("a@gmail.com", key="new")])
    ids = [answer.id for answer in answers if isinstance(answer, Accepted)]
    assert ids == [format_id(m.id) for m in (stored, forgotten, fresh, fresh)]
    assert [len(spool.jobs_of(m.id)) for m in (earlier, stored, forgotten, fresh)] == [1, 1, 1, 1]


def test_messages_may_share_a_content(spool: Spool) -> None:
    content = Content(new_id(), ContentKind.SKELETON, b"\x00\xff", b"s" * 32)
    spool.accept([message("a@gmail.com", content=content), message("b@gmail.com", content=content)])
    spool.accept([message("c@gmail.com", content=content)])
    assert spool.contents([content.id]) == {content.id: content}


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"tenant": "x" * 65}, "tenant"),
        ({"key": "k\0"}, "idempotency_key"),
        ({"campaign": "c\ud800"}, "campaign"),
    ],
)
def test_what_no_database_can_hold_harms_only_itself(
    spool: Spool, bad: dict[str, str], word: str
) -> None:
    good = message("a@gmail.com")
    answers = spool.accept([message("b@gmail.com", **bad), good])  # type: ignore[arg-type]  # one of three
    assert isinstance(answers[0], Unstorable)
    assert word in answers[0].why
    assert isinstance(answers[1], Accepted)
    assert len(spool.jobs_of(good.id)) == 1


def test_no_messages_no_transaction(spool: Spool) -> None:
    assert spool.accept([]) == []
