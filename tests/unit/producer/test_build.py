"""What a submission becomes: fields, recipients, senders, wishes, header lines."""

from __future__ import annotations

import email
import email.policy
from typing import Any

import msgspec
import pytest

from mailweir.contracts.credential import ApiKey
from mailweir.contracts.ids import format_id
from mailweir.contracts.job import Bucket, ContentKind
from mailweir.contracts.submit import AttachmentData, Recipient, SubmitRequest, TemplateData
from mailweir.mail.skeleton import decode
from producer.policy.build import Built, Rules, build
from producer.policy.refusal import Forbidden, Invalid, Refusal, TooLarge

NOW = 1_800_000_000.0
RULES = Rules(100, 1_000_000, 200, 65536, 500, "mw.test", lambda j, t, b, r: f"https://u.test/{j}")
KEY = ApiKey("k1", "acme", frozenset({"send"}), ("acme.test", "*.sub.test"))
RAW = b"From: a@acme.test\r\nTo: b@x.test\r\nSubject: s\r\n\r\nhi\r\n"


def _ids(number: int) -> list[int]:
    return [1000 + i for i in range(number)]


def make(key: ApiKey = KEY, **fields: Any) -> Built:
    if "raw" not in fields and "template" not in fields:
        fields = {
            "from_": "Acme <a@acme.test>",
            "to": ("b@x.test",),
            "subject": "s",
            "text": "hi",
        } | fields
    return build(SubmitRequest(**fields), key, NOW, RULES, ids=_ids)


def sent(built: Built, job: int = 0) -> bytes:
    """What a worker sends: the job's lines, the message's, the content."""
    message = built.message
    assert message is not None
    prepend = (message.jobs[job].prepend + message.meta.prepend).encode()
    if message.content.kind is ContentKind.SKELETON:
        return prepend + decode(message.content.body).merge(message.jobs[job].variables or {})
    return prepend + message.content.body


def test_a_plain_message() -> None:
    built = make(
        cc=("Ä B <c@y.test>",),
        bcc=("d@z.test",),
        tags=("t", "t"),
        metadata={"u": 7},
        campaign="c 1",
    )
    message = built.message
    assert message is not None
    assert [job.recipient for job in message.jobs] == ["b@x.test", "c@y.test", "d@z.test"]
    assert {job.mail_from for job in message.jobs} == {"a@acme.test"}
    assert (message.bucket, message.priority, message.send_at) == (Bucket.TRANSACTIONAL, 5, NOW)
    assert message.meta.metadata == {"u": "7"}
    assert message.meta.tags == ("t",)
    parsed = email.message_from_bytes(sent(built, 2), policy=email.policy.default)
    assert not parsed.defects
    assert parsed["From"] == "Acme <a@acme.test>"
    assert str(parsed["Cc"]) == "Ä B <c@y.test>"
    assert parsed["Bcc"] is None
    assert b"d@z.test" not in sent(built, 2)
    assert parsed["X-Mailweir-Ref"] == format_id(1003)
    assert parsed["Message-ID"] == f"<{format_id(1000)}@acme.test>"
    assert parsed["Date"] == "Fri, 15 Jan 2027 08:00:00 +0000"
    assert parsed["Feedback-ID"] == "c-1:acme:transactional:mailweir"
    assert len(parsed.keys()) == len(set(parsed.keys()))


def test_ids_and_bytes_do_not_depend_on_when_it_is_built() -> None:
    assert sent(make()) == sent(make())


REFUSED: dict[str, tuple[dict[str, Any], str | None, type[Refusal]]] = {
    "no recipient": ({"to": ()}, "to", Invalid),
    "bad recipient": ({"to": ("b@x.test", "b c@x.test")}, "to[1]", Invalid),
    "two in one": ({"to": ("a@x.com,b@y.com",)}, "to[0]", Invalid),
    "too many": ({"to": tuple(f"u{i}@x.test" for i in range(101))}, "to", TooLarge),
    "no from": ({"from_": None}, "from", Invalid),
    "other domain": ({"from_": "a@evil.test"}, "from", Forbidden),
    "other return path": ({"mail_from": "a@evil.test"}, "mail_from", Forbidden),
    "From with a break": ({"from_": "A\r\nBcc: x <a@acme.test>"}, "from", Invalid),
    "name with a break": ({"to": (Recipient("b@x.test", name="a\nb"),)}, "to", Invalid),
    "subject with a break": ({"subject": "a\r\nBcc: e@v.il"}, "subject", Invalid),
    "header with a break": ({"headers": {"X-A": "a\nb"}}, "headers.X-A", Invalid),
    "reserved header": ({"headers": {"Bcc": "x@y.zz"}}, "headers.Bcc", Invalid),
    "bad header name": ({"headers": {"X A": "1"}}, "headers.X A", Invalid),
    "same header twice": ({"headers": {"X-A": "1", "x-a": "2"}}, "headers", Invalid),
    "bad message id": ({"headers": {"Message-ID": "<a@b\r\nX: y>"}}, "headers.Message-ID", Invalid),
    "bucket": ({"bucket": "urgent"}, "bucket", Invalid),
    "priority": ({"priority": 0}, "priority", Invalid),
    "naive time": ({"send_at": "2027-02-01T00:00:00"}, "send_at", Invalid),
    "infinite time": ({"send_at": float("inf")}, "send_at", Invalid),
    "far time": ({"send_at": NOW + 400 * 86400}, "send_at", Invalid),
    "expired": ({"expires_at": NOW - 1}, "expires_at", Invalid),
    "expires before sent": ({"send_at": NOW + 10, "expires_at": NOW + 5}, "expires_at", Invalid),
    "key": ({"idempotency_key": "x" * 257}, "idempotency_key", Invalid),
    "two contents": ({"raw": RAW, "text": "x"}, "text", Invalid),
    "wish without scope": ({"pool": "p"}, "pool", Forbidden),
    "attachment type": (
        {"attachments": (AttachmentData("a", b"x", "text"),)},
        "attachments[0].content_type",
        Invalid,
    ),
    "S4 marketing": ({"bucket": "marketing"}, "unsubscribe", Invalid),
    "S4 bulk, link only": (
        {"bucket": "bulk", "headers": {"List-Unsubscribe": "<https://u.test/1>"}},
        "unsubscribe",
        Invalid,
    ),
    "H20": ({"unsubscribe": "<javascript:x>"}, "unsubscribe", Invalid),
    "H14": ({"raw": b"From: a@acme.test\r\n" + RAW}, "raw", Invalid),
    "raw from another domain": (
        {"raw": RAW.replace(b"acme.test", b"evil.test")},
        "raw.from",
        Forbidden,
    ),
    "raw, two authors": (
        {"raw": RAW.replace(b"a@acme.test", b"a@acme.test, b@acme.test")},
        "raw.from",
        Invalid,
    ),
    "raw with comment": (
        {"raw": RAW.replace(b"a@acme.test", b"a@acme.test(x)evil.test")},
        "raw.from",
        Invalid,
    ),
    "raw large": ({"raw": RAW + b"x\r\n" * 400_000}, "raw", TooLarge),
    "metadata": ({"metadata": {"a": "x" * 9000}}, "metadata", Invalid),
    "engagement": ({"engagement": "low"}, "engagement", Invalid),
}


@pytest.mark.parametrize(("fields", "field", "kind"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(fields: dict[str, Any], field: str | None, kind: type[Refusal]) -> None:
    with pytest.raises(kind) as caught:
        make(**fields)
    assert (caught.value.field or "").startswith(field or "")
    assert "@" not in caught.value.why.replace("<a@b>", "").replace("'@'", "").replace(
        "@right", ""
    ).replace("@/+", "")


def test_subdomains_of_a_key() -> None:
    make(from_="a@x.sub.test")
    with pytest.raises(Forbidden):
        make(from_="a@sub.test")
    with pytest.raises(Forbidden):
        make(from_="a@evilsub.test")


def test_aliases_and_times() -> None:  # S1
    for alias in ("notification", "system", "Transactional"):
        message = make(bucket=alias).message
        assert message is not None
        assert message.bucket is Bucket.TRANSACTIONAL
    message = make(send_at="2027-01-16T09:00:00+01:00", expires_at=NOW + 200_000).message
    assert message is not None
    assert message.send_at == message.meta.send_at == NOW + 86400
    assert message.expires_at == NOW + 200_000


def test_duplicates_are_one_job_and_told() -> None:  # A30
    built = make(to=("b@x.test", "B@X.test"), cc=("b@x.test.",))
    assert built.message is not None
    assert len(built.message.jobs) == 1
    assert [given for given, _ in built.duplicates] == ["B@X.test", "b@x.test."]


def test_partial_refuses_recipients_and_not_the_message() -> None:
    built = make(to=("b@x.test", "bad"), partial=True)
    assert built.message is not None
    assert [(s.recipient, s.status) for s in built.refused] == [("bad", "refused")]
    nobody = make(to=("bad",), partial=True)
    assert nobody.message is None
    assert nobody.answer(None).id == ""


def test_unsubscribe_link_of_each_job() -> None:  # S4
    built = make(bucket="bulk", unsubscribe=True, to=("a@x.test", "b@x.test"))
    for index, job in enumerate((1001, 1002)):
        parsed = email.message_from_bytes(sent(built, index), policy=email.policy.default)
        assert parsed["List-Unsubscribe"] == f"<https://u.test/{job}>"
        assert parsed["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    own = make(bucket="bulk", unsubscribe="<https://acme.test/u/1>")
    parsed = email.message_from_bytes(sent(own), policy=email.policy.default)
    assert parsed["List-Unsubscribe"] == "<https://acme.test/u/1>"
    assert parsed["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


def test_a_ready_message_is_not_touched() -> None:  # H13, H15
    raw = RAW.replace(b"Subject: s", b"Subject: =?utf-8?q?hi=0D=0ABcc=3A_e=40v?=")
    built = make(raw=raw)
    assert built.message is not None
    assert built.message.content.body == raw
    assert sent(built).endswith(raw)
    names = [
        line.partition(b":")[0] for line in sent(built).partition(b"\r\n\r\n")[0].split(b"\r\n")
    ]
    assert names == [
        b"X-Mailweir-Ref",
        b"Date",
        b"Message-ID",
        b"Feedback-ID",
        b"From",
        b"To",
        b"Subject",
    ]
    assert [job.recipient for job in built.message.jobs] == ["b@x.test"]


def test_a_ready_message_without_from_gets_one() -> None:  # H15
    built = make(raw=b"Subject: s\r\n\r\nhi\r\n", from_="a@acme.test", to=("b@x.test",))
    assert b"From: a@acme.test\r\n" in sent(built)


def test_wishes_by_header() -> None:  # S3
    own = (
        b"X-Mailweir-Pool: premium\r\nX-Mailweir-Bucket: system\r\nX-Mailweir-Priority: 1\r\n"
        b"X-Mailweir-Tag: a, b\r\nBcc: c@z.test\r\n"
    )
    may = msgspec.structs.replace(KEY, scopes=frozenset({"send", "route"}))
    for built in (
        make(may, raw=own + RAW),
        make(
            may,
            headers={
                "X-Mailweir-Pool": "premium",
                "X-Mailweir-Priority": "1",
                "X-Mailweir-Tag": "a, b",
            },
            bcc=("c@z.test",),
        ),
    ):
        message = built.message
        assert message is not None
        assert message.meta.wishes.pool == "premium"
        assert message.priority == 1
        assert message.meta.tags == ("a", "b")
        assert len(message.jobs) == 2
        assert b"premium" not in sent(built)
        assert b"c@z.test" not in sent(built)
    ignored = make(raw=own + RAW).message
    assert ignored is not None
    assert ignored.meta.wishes.pool is None


def test_merge_gives_each_its_own_headers() -> None:  # P6
    template = TemplateData("Hi {{ name }}", "Hello {{ name }} of {{ city }}")
    fields: dict[str, Any] = {
        "from_": "a@acme.test",
        "template": template,
        "variables": {"city": "Bergen"},
    }
    to = (
        Recipient("a@x.test", name="Ada", variables={"name": "Ada"}),
        Recipient("b@x.test", variables={"name": "Béla", "city": "Évora"}),
    )
    built = make(to=to, **fields)
    assert built.message is not None
    assert built.message.content.kind is ContentKind.SKELETON
    first, second = (
        email.message_from_bytes(sent(built, i), policy=email.policy.default) for i in (0, 1)
    )
    assert (first["To"], second["To"]) == ("Ada <a@x.test>", "b@x.test")
    assert (first["Subject"], second["Subject"]) == ("Hi Ada", "Hi Béla")
    assert second.get_content().strip() == "Hello Béla of Évora"
    assert first["Message-ID"] != second["Message-ID"]
    with pytest.raises(Invalid) as caught:
        make(to=(*to, "c@x.test"), **fields)
    assert caught.value.field == "to[2].variables.name"
    partial = make(to=(*to, "c@x.test"), partial=True, **fields)
    assert [s.reason for s in partial.refused] == [
        "variables.name: the template asks for it and it is not given"
    ]


def test_one_call_is_one_hash() -> None:  # P5
    def digest(**fields: Any) -> bytes:
        message = make(**fields).message
        assert message is not None
        return message.request_hash

    assert digest(idempotency_key="1") == digest(idempotency_key="2")
    assert digest(metadata={"a": 1, "b": 2}) == digest(metadata={"b": 2, "a": 1})
    assert digest(text="hi") != digest(text="ho")


def test_fifty_thousand_recipients_are_refused_at_once() -> None:  # A29
    with pytest.raises(TooLarge):
        make(to=tuple(f"u{i}@x.test" for i in range(50_001)))
