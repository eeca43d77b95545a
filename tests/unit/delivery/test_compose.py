"""What a job becomes on the wire."""

from __future__ import annotations

from hashlib import sha256

import pytest

from mailweir.contracts.job import Bucket, Content, ContentKind, Job, JobMeta
from mailweir.mail.skeleton import compile_template
from tests.unit.test_dkim import SIGNERS, verified
from workers.delivery.compose import compose

PREPEND = (
    "Date: Mon, 2 Nov 2026 10:00:00 +0000\r\nMessage-ID: <7@acme.test>\r\n"
    "From: news@acme.test\r\nTo: user@d.test\r\n"
)


def content(body: bytes, kind: ContentKind = ContentKind.MIME) -> Content:
    return Content(1, kind, body, sha256(body).digest())


def job(prepend: str = "", **changes: object) -> Job:
    values: dict[str, object] = {
        "id": 7, "message_id": 1, "tenant": "t", "bucket": Bucket.BULK, "priority": 5,
        "recipient": "user@d.test", "mail_from": "b@acme.test", "lane": "~00", "content_id": 1,
        "state": "sending", "accepted_at": 1_700_000_000.5, "due_at": None, "expires_at": None,
        "attempts": 0, "meta": JobMeta(prepend=prepend), **changes,
    }  # fmt: skip
    return Job(**values)  # type: ignore[arg-type]  # a table of mixed defaults


def test_mime_goes_out_as_it_came_behind_our_lines() -> None:
    body = b"Subject: x\r\n\r\n.dot\r\nlast\r\n"
    envelope = compose(job(PREPEND), content(body))
    assert envelope.data == PREPEND.encode() + body
    assert (envelope.rcpt, envelope.mail_from) == ("user@d.test", "b@acme.test")
    assert not envelope.smtputf8


def test_a_missing_last_line_end_is_added_before_signing() -> None:
    envelope = compose(job(PREPEND), content(b"Subject: x\r\n\r\nno end"), SIGNERS)
    assert envelope.data.endswith(b"no end\r\n")
    assert verified(envelope.data) == [True, True]


def test_a_template_is_merged_signed_and_the_same_on_every_attempt() -> None:
    skeleton = compile_template("Hi {{name}}", "Dear {{name}}", "<p>{{name}}</p>")
    body = content(skeleton.encode(), ContentKind.SKELETON)
    one = job(PREPEND, variables={"name": "<Jürgen>"})
    first, again = compose(one, body, SIGNERS), compose(one, body, SIGNERS)
    assert first.data == again.data
    assert verified(first.data) == [True, True]
    assert b"&lt;J=C3=BCrgen&gt;" in first.data.replace(b"=\r\n", b"")
    other = compose(job(PREPEND, variables={"name": "Ann"}), body, SIGNERS)
    assert b"Ann" in other.data
    assert b"rgen" not in other.data


def test_a_missing_variable_is_an_error() -> None:
    body = content(compile_template("x", "Dear {{name}}").encode(), ContentKind.SKELETON)
    with pytest.raises(ValueError, match="name"):
        compose(job(variables={}), body)


def test_raw_utf8_in_headers_needs_smtputf8_and_in_the_body_does_not() -> None:
    assert compose(job(), content("Subject: ü\r\n\r\nx\r\n".encode())).smtputf8
    assert not compose(job(), content("Subject: u\r\n\r\nü\r\n".encode())).smtputf8


def test_bare_line_feeds_never_leave() -> None:
    with pytest.raises(ValueError, match="CRLF"):
        compose(job(), content(b"Subject: x\r\n\r\na\n.\nb\r\n"))


def test_verp_replaces_the_sender() -> None:
    envelope = compose(job(), content(b"Subject: x\r\n\r\n"), mail_from="b+7@acme.test")
    assert envelope.mail_from == "b+7@acme.test"
