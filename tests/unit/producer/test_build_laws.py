"""Whatever is submitted: a refusal, or a message that reads back with nobody's line added."""

from __future__ import annotations

import email
import email.policy
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mailweir.mail.content import has_bare_breaks
from producer.policy.build import Built
from producer.policy.refusal import Refusal
from tests.unit.producer.test_build import make, sent

_EVIL = st.sampled_from(
    [
        "\r\nBcc: e@v.il",
        "\n",
        "\r",
        "\0",
        "\u2028",
        "=?utf-8?q?=0D=0ABcc=3A_x?=",
        ">",
        "<",
        '"',
        ",",
        "\ud800",
        "(",
        ":",
    ]
)
_TEXT = st.lists(_EVIL | st.text(max_size=12), max_size=4).map("".join)
_ADDRESS = st.builds(
    lambda a, b, c: f"{a}x@{b}acme.test{c}", _TEXT, st.just("") | _TEXT, st.just("") | _TEXT
)
_GOOD = st.sampled_from(["a@acme.test", "Ä B <b@acme.test>", '"x, y" <c@acme.test>'])


@settings(max_examples=600)
@given(
    st.fixed_dictionaries(
        {
            "from_": _GOOD | _ADDRESS,
            "to": st.lists(_GOOD | _ADDRESS, min_size=1, max_size=3).map(tuple),
        },
        optional={
            "subject": _TEXT,
            "text": _TEXT,
            "html": _TEXT,
            "reply_to": st.lists(_GOOD | _TEXT, max_size=2).map(tuple),
            "headers": st.dictionaries(st.just("X-A") | _TEXT, _TEXT, max_size=2),
            "tags": st.lists(_TEXT, max_size=2).map(tuple),
            "campaign": _TEXT,
            "metadata": st.dictionaries(_TEXT, _TEXT, max_size=2),
            "mail_from": _GOOD | _TEXT,
            "unsubscribe": st.booleans() | _TEXT,
            "bucket": st.sampled_from(["bulk", "system"]) | _TEXT,
            "idempotency_key": _TEXT,
            "send_at": st.floats() | _TEXT,
        },
    )
)
def test_any_request(fields: dict[str, Any]) -> None:
    try:
        built = make(**fields)
    except Refusal:
        return
    check(built)


@settings(max_examples=400)
@given(
    st.lists(
        _TEXT | _GOOD | st.sampled_from(["From: ", "To: ", "\r\n", "Subject: s", "Bcc: "]),
        max_size=14,
    ).map("".join)
)
def test_any_ready_message(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    try:
        built = make(raw=b"From: a@acme.test\r\n" + raw, to=("b@x.test",))
    except Refusal:
        return
    check(built)


def check(built: Built) -> None:
    message = built.message
    assert message is not None
    for index, job in enumerate(message.jobs):
        raw = sent(built, index)
        assert not has_bare_breaks(raw)
        assert raw.partition(b"\r\n\r\n")[0].isascii()
        parsed = email.message_from_bytes(raw, policy=email.policy.compat32)
        names = [name.lower() for name in parsed]
        assert "bcc" not in names
        for name in ("from", "date", "message-id", "x-mailweir-ref", "feedback-id"):
            assert names.count(name) == 1, (name, names)
        assert job.recipient.isascii()
        assert not set(job.recipient) & set(' \r\n<>,"')
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message)) == message
