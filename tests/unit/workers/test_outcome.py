"""What becomes of a job after each kind of end: the rows S35, S39, S40, N41 and the P items."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailweir.contracts.events import BounceClass, Classification, Suppress
from mailweir.contracts.job import Bucket, Job, JobMeta
from mailweir.contracts.lifecycle import WAITING, State
from mailweir.contracts.policy import Provider, Retry, Source
from mailweir.contracts.route import Orders
from mailweir.mail.classify import classify
from workers.delivery.types import Result
from workers.policy.outcome import CUT, PathEvent, Verdict, decide

NOW = 1_000_000.0
MX = Source("mx1")
RELAY = Source("ses", kind="relay", host="smtp.relay.example")


def job(**changes: object) -> Job:
    values: dict[str, object] = {
        "id": 1, "message_id": 1, "tenant": "acme", "bucket": Bucket.BULK, "priority": 5,
        "recipient": "you@there.example", "mail_from": "me@here.example", "lane": "~00",
        "content_id": 1, "state": "sending", "accepted_at": NOW - 60, "due_at": None,
        "expires_at": None, "attempts": 0, "meta": JobMeta(),
    }  # fmt: skip
    return Job(**(values | changes))  # type: ignore[arg-type]  # test table of fields


def ended(
    reply: str = "",
    stage: str = "rcpt",
    *,
    source: Source = MX,
    retry: Retry = Retry(),  # noqa: B008  # frozen
    orders: Orders = Orders(),  # noqa: B008  # frozen
    chance: float = 0.5,
    provider: Provider | None = None,
    resent: bool = False,
    of: Job | None = None,
    error: str | None = None,
    dot_sent: bool = False,
) -> Verdict:
    code = int(reply[:3]) if reply[:3].isdigit() else None
    result = Result(1, stage, code, reply, "mx.there.example", 0.1, dot_sent, error)
    seen = classify(reply, stage=stage) if code is not None and code >= 400 else None
    return decide(
        of or job(), orders, result, seen, retry,
        source=source, now=NOW, chance=chance, provider=provider, resent=resent,
    )  # fmt: skip


def test_250_to_the_final_dot_is_sent() -> None:
    assert ended("250 2.0.0 queued", "dot") == Verdict(State.SENT, PathEvent.GOOD)


def test_p8_an_unknown_user_bounces_and_is_suppressed_for_ever() -> None:
    verdict = ended("550 5.1.1 user unknown")
    assert (verdict.state, verdict.due_at) == (State.BOUNCED, None)
    assert verdict.suppress == Suppress("recipient", None)
    assert not verdict.counts_against_path


def test_p9_spam_bounces_without_suppressing() -> None:
    verdict = ended("550 5.7.1 message rejected as spam", "dot")
    assert verdict.state is State.BOUNCED
    assert verdict.suppress is None


def test_p12_the_first_digit_decides() -> None:
    assert ended("450 5.1.1 user unknown").state is State.DEFERRED
    assert ended("450 5.1.1 user unknown").suppress is None


def test_p2_a_refusing_banner_bounces_nobody_s_mail() -> None:
    for stage in ("connect", "banner", "ehlo", "starttls", "auth"):
        verdict = ended("554 5.7.1 go away", stage)
        assert verdict.state is State.DEFERRED
        assert verdict.counts_against_path


def test_p6_greylisting_stays_with_its_source_and_waits_five_minutes() -> None:
    verdict = ended("451 4.7.1 greylisted, please try again later")
    assert verdict.state is State.DEFERRED
    assert verdict.stay_with == "mx1"
    assert verdict.due_at == NOW + 300
    assert verdict.layer is None
    assert not verdict.counts_against_path


def test_a_hint_is_honoured_and_never_undercut() -> None:
    text = "451 4.7.1 try again in 400 seconds"
    assert ended(text, chance=0.0).due_at == NOW + 400
    late = ended(text, chance=1.0).due_at
    assert late == pytest.approx(NOW + 480)


def test_the_provider_s_shortest_wait_binds() -> None:
    verdict = ended("451 4.3.0 try later", provider=Provider("gmx", retry_min=1800))
    assert verdict.due_at == NOW + 1800


@pytest.mark.parametrize("retry", [Retry(uncertain="resend"), Retry(uncertain="leave")])
def test_n41_nothing_after_the_dot(retry: Retry) -> None:
    verdict = ended("", "dot", retry=retry, dot_sent=True, error="reset")
    assert verdict.state is State.UNCERTAIN
    assert verdict.stay_with == "mx1"
    assert verdict.layer is None, "no failover while uncertain"
    assert verdict.due_at == (NOW + 900 if retry.uncertain == "resend" else None)


def test_n41_a_job_that_expires_sooner_goes_at_once() -> None:
    code = job(expires_at=NOW + 300)
    verdict = ended(
        "", "dot", retry=Retry(uncertain="resend"), dot_sent=True, error="timeout", of=code
    )
    assert verdict.due_at == NOW


def test_n41_it_is_not_sent_a_third_time() -> None:
    verdict = ended(
        "", "dot", retry=Retry(uncertain="resend"), dot_sent=True, error="reset", resent=True
    )
    assert (verdict.state, verdict.due_at) == (State.UNCERTAIN, None)


def test_our_own_cut_says_nothing_of_the_path() -> None:
    assert ended("", "dot", dot_sent=True, error=CUT).event is PathEvent.NEUTRAL
    assert ended("", "dot", dot_sent=True, error="reset").event is PathEvent.BAD


def test_p15_a_reply_nobody_can_read_after_the_dot_is_uncertain() -> None:
    assert ended("2 50 ok", "dot", dot_sent=True, error="malformed").state is State.UNCERTAIN
    assert ended("2 50 ok", "data", error="malformed").state is State.DEFERRED


def test_age_ends_a_job_as_expired_not_bounced() -> None:
    old = job(accepted_at=NOW - 72 * 3600 + 10, attempts=12)
    verdict = ended("451 4.3.0 later", of=old)
    assert verdict.state is State.EXPIRED
    assert verdict.suppress is None
    assert verdict.reason is not None
    assert "too old" in verdict.reason


def test_a_retry_just_behind_the_deadline_is_pulled_before_it() -> None:
    code = job(expires_at=NOW + 50)
    verdict = ended("451 4.3.0 later", of=code)
    assert verdict.state is State.DEFERRED
    assert verdict.due_at is not None
    assert NOW + 25 < verdict.due_at < NOW + 50


def test_max_retries_is_obeyed_where_it_is_set() -> None:
    retry = Retry(max_retries=1)
    assert ended("451 4.3.0 later", retry=retry).state is State.DEFERRED
    assert ended("451 4.3.0 later", retry=retry, of=job(attempts=1)).state is State.EXPIRED


def test_no_retry_on_hard_bounce_is_taken_literally() -> None:
    reply = "550 5.7.25 PTR record missing"
    assert ended(reply).state is State.DEFERRED
    assert ended(reply, orders=Orders(retry_hard=False)).state is State.BOUNCED
    assert ended("451 4.3.0 later", orders=Orders(retry_hard=False)).state is State.DEFERRED


def test_s35_a_reply_that_names_our_rate_moves_the_job_twice_at_most() -> None:
    reply = "550 5.7.25 PTR record missing"
    first = ended(reply)
    assert (first.layer, first.due_at, first.stay_with) == ("source", NOW + 1, None)
    assert ended(reply, of=job(attempts=2)).layer is None


def test_s35_a_relay_that_cannot_be_reached_moves_the_job() -> None:
    verdict = ended("", "connect", source=RELAY, error="refused")
    assert (verdict.layer, verdict.due_at) == ("relay", NOW + 1)
    assert ended("", "connect", error="refused").layer is None


def test_s35_spam_and_reputation_stay() -> None:
    for reply in ("421 4.7.0 very low reputation of IP", "451 4.7.1 looks like spam"):
        verdict = ended(reply, "dot")
        assert verdict.state is State.DEFERRED
        assert (verdict.layer, verdict.stay_with) == (None, "mx1")


def test_s34_a_domain_without_mail_bounces_and_keeps_both_codes() -> None:
    seen = classify("556 5.1.10 the domain takes no mail (null MX, RFC 7505)")
    result = Result(1, "dns", 555, "555 no MX record; 556 5.1.10 null MX", "", 0.0, error="dns")
    verdict = decide(job(), Orders(), result, seen, Retry(), source=MX, now=NOW, chance=0.5)
    assert verdict.state is State.BOUNCED
    assert verdict.event is PathEvent.NEUTRAL
    assert verdict.reason is not None
    assert "555 no MX record" in verdict.reason
    assert "5.1.10" in verdict.reason


def test_dns_trouble_is_temporary_and_nobody_s_fault() -> None:
    verdict = ended("servfail", "dns", error="dns")
    assert (verdict.state, verdict.event) == (State.DEFERRED, PathEvent.NEUTRAL)


def test_sandbox_mail_is_sent_and_leaves_no_trace_on_the_path() -> None:
    verdict = ended("250 sandbox", "dot", of=job(meta=JobMeta(sandbox=True)))
    assert (verdict.state, verdict.event) == (State.SENT, PathEvent.NEUTRAL)


REPLIES = st.builds(
    lambda code, enhanced, text: f"{code} {enhanced} {text}",
    st.integers(400, 599),
    st.sampled_from(["4.2.2", "5.1.1", "5.7.1", "4.7.0", "5.3.4", "2.0.0", ""]),
    st.text(max_size=60),
)


@given(
    reply=REPLIES,
    stage=st.sampled_from(
        ["connect", "banner", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "dot"]
    ),
    attempts=st.integers(0, 40),
    age=st.floats(0, 100 * 3600),
    chance=st.floats(0, 1),
    blame=st.sampled_from(["recipient", "source", "sender", "content", "remote"]),
)
def test_laws(reply: str, stage: str, attempts: int, age: float, chance: float, blame: str) -> None:
    """Whatever a remote says: a due time exactly where the job waits, in the future, before its end;
    suppression only for bounces; recipients' faults never count against the path."""
    of = job(attempts=attempts, accepted_at=NOW - age)
    seen = classify(reply, stage=stage)
    seen = Classification(
        seen.category, seen.cls, blame, seen.retry, seen.suppress, seen.retry_after, 1.0, seen.rule
    )
    result = Result(1, stage, int(reply[:3]), reply, "", 0.0)
    verdict = decide(of, Orders(), result, seen, Retry(), source=MX, now=NOW, chance=chance)
    assert verdict.state in (State.DEFERRED, State.BOUNCED, State.EXPIRED)
    assert (verdict.due_at is not None) == (verdict.state in WAITING)
    if verdict.due_at is not None:
        assert NOW < verdict.due_at < of.accepted_at + 72 * 3600
    if verdict.suppress is not None:
        assert verdict.state is State.BOUNCED
    if (
        blame == "recipient"
        and stage in ("rcpt", "data", "dot")
        and seen.category != "rate_limited"
    ):
        assert not verdict.counts_against_path
    if reply[0] == "4":
        assert verdict.state is not State.BOUNCED


def test_classes_of_the_classifier_are_those_we_decide_on() -> None:
    assert classify("550 5.1.1 no such user", stage="rcpt").cls is BounceClass.HARD


@pytest.mark.parametrize(
    "reply", ["450 4.3.2 later", "550 5.7.1 blocked using a DNSBL", "421 4.7.0 rate"]
)
def test_what_may_have_arrived_keeps_its_way_to_the_end(reply: str) -> None:
    """N41: after an uncertain attempt no later deferral moves the job, though it would move another."""
    verdict = ended(reply, "rcpt", resent=True)
    if verdict.state is State.DEFERRED:
        assert (verdict.stay_with, verdict.layer) == (MX.name, None)
    lost = ended("", "mail", error="timeout", resent=True)
    assert (lost.state, lost.stay_with, lost.layer) == (State.DEFERRED, MX.name, None)
    assert ended("", "mail", error="timeout").stay_with is None
    relayed = ended("", "connect", error="refused", source=RELAY, resent=True)
    assert (relayed.stay_with, relayed.layer) == (RELAY.name, None)
    assert ended("", "connect", error="refused", source=RELAY).layer == "relay"
