"""Messages made by hand are what Celery and kombu would have made, and read back what was put in."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailweir.contracts.job import Bucket
from mailweir.contracts.route import Chunk
from mailweir.plumbing.envelope import (
    ACCEPT_TASK,
    BrokenMessage,
    argument_of,
    chunk_message,
    properties,
    redis_argument,
    redis_entry,
    task_message,
)
from mailweir.plumbing.transport import is_message, parse_message

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_what_goes_in_comes_out(value: object) -> None:
    message = task_message("ingress", ACCEPT_TASK, "id-1", value)
    assert json.loads(argument_of(message.body)) == value
    assert json.loads(redis_argument(redis_entry(message), ACCEPT_TASK)) == value
    assert parse_message(redis_entry(message)) is not None


def test_headers_are_those_of_celery() -> None:
    """Against Celery's own maker of protocol-2 messages, so a new field there is noticed."""
    from celery import Celery

    app = Celery(set_as_current=False)
    theirs = app.amqp.as_task_v2("id-1", "t", args=(1,), kwargs={}, ignore_result=True)
    ours = task_message("bulk", "t", "id-1", 1)
    assert set(theirs.headers) <= set(ours.headers)
    for name in set(theirs.headers) - {"origin", "argsrepr", "kwargsrepr"}:
        assert ours.headers[name] == theirs.headers[name], name
    args, kwargs, embed = json.loads(ours.body)
    assert (tuple(args), kwargs, embed) == theirs.body
    assert properties(ours)["correlation_id"] == theirs.properties["correlation_id"]


def test_a_chunk_says_nothing_of_whom_and_what() -> None:
    message = chunk_message(Chunk(7, Bucket.BULK, "bulk", "s1", (1, 2), 900))
    assert json.loads(argument_of(message.body)) == {
        "id": 7,
        "bucket": "bulk",
        "queue": "bulk",
        "source": "s1",
        "jobs": [1, 2],
        "size": 900,
    }
    assert message.headers["argsrepr"] == message.headers["kwargsrepr"] == ""


def test_two_entries_of_one_message_have_two_delivery_tags() -> None:
    message = task_message("bulk", "t", "id", 1)
    tags = {json.loads(redis_entry(message))["properties"]["delivery_tag"] for _ in range(50)}
    assert len(tags) == 50


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_else(noise: bytes) -> None:
    with pytest.raises(BrokenMessage):
        redis_argument(noise, ACCEPT_TASK)
    with pytest.raises(BrokenMessage):
        argument_of(noise)
    assert parse_message(noise) is None


@given(json_values)
def test_no_json_is_taken_for_a_message(value: object) -> None:
    assert not is_message(value)


@pytest.mark.parametrize(
    "body",
    [b"[[], {}, {}]", b"[[1, 2], {}, {}]", b"[[1]]", b"{}", b"[[1], 5, {}]", b"[[1], {}"],
)
def test_bodies_with_another_shape_are_broken(body: bytes) -> None:
    with pytest.raises(BrokenMessage):
        argument_of(body)


def test_another_task_is_broken() -> None:
    with pytest.raises(BrokenMessage, match="another task"):
        redis_argument(redis_entry(task_message("ingress", "other", "x", 1)), ACCEPT_TASK)


def test_base64_is_checked() -> None:
    entry = json.loads(redis_entry(task_message("bulk", "t", "x", 1)))
    entry["body"] = base64.b64encode(b"\xff\xfe").decode()
    assert parse_message(json.dumps(entry).encode()) is None
