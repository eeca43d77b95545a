"""Celery messages of protocol 2, made by hand: pure, and thirty times cheaper than ``apply_async``.

Source: celery.app.amqp.as_task_v2 and kombu.transport.virtual (5.7): the body is ``[args, kwargs, embed]`` as
JSON; on Redis the whole message is one JSON list entry with a base-64 body. ``argsrepr`` stays empty,
since it goes to logs, events and Flower.
"""

from __future__ import annotations

import base64
import secrets
from typing import Any

import msgspec

from mailweir.contracts.ids import format_id
from mailweir.contracts.route import Chunk

DELIVER_TASK = "workers.deliver"
ACCEPT_TASK = "mailweir.accept"
SCHEMA = 1

_EMBED: dict[str, None] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_encode = msgspec.json.Encoder().encode


class TaskMessage(msgspec.Struct, frozen=True):
    """One message, before it takes the form of a broker."""

    queue: str
    headers: dict[str, Any]
    body: bytes  # JSON


def task_message(queue: str, task: str, task_id: str, argument: object) -> TaskMessage:
    """A message that calls ``task`` with one argument. The id is also what ``revoke`` takes."""
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "",
        "kwargsrepr": "",
        "origin": "mailweir",
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        "schema": SCHEMA,
    }
    return TaskMessage(queue, headers, _encode([[argument], {}, _EMBED]))


def chunk_message(chunk: Chunk) -> TaskMessage:
    """The message that carries a chunk to its bucket queue; its task id is the chunk's id."""
    return task_message(chunk.queue, DELIVER_TASK, format_id(chunk.id), chunk)


def properties(message: TaskMessage) -> dict[str, Any]:
    """The AMQP properties both brokers share."""
    return {"correlation_id": message.headers["id"], "reply_to": None, "delivery_mode": 2}


def redis_entry(message: TaskMessage) -> bytes:
    """The list entry kombu's Redis transport reads (priority 0, the only step we use)."""
    return _encode(
        {
            "body": base64.b64encode(message.body).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": message.headers,
            "properties": {
                **properties(message),
                "delivery_info": {"exchange": "", "routing_key": message.queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": secrets.token_hex(16),
            },
        }
    )


class BrokenMessage(ValueError):
    """A list entry or body is no protocol-2 message with one argument."""


def argument_of(body: bytes) -> bytes:
    """The one argument of a message's body, as JSON. Raises :class:`BrokenMessage`."""
    try:
        args, _kwargs, _embed = msgspec.json.decode(
            body, type=tuple[tuple[msgspec.Raw], dict[str, Any], Any]
        )
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BrokenMessage(f"no task message with one argument: {error}") from None
    return bytes(args[0])


class _Entry(msgspec.Struct):
    body: str
    headers: dict[str, Any]
    properties: dict[str, Any]


_decode_entry = msgspec.json.Decoder(_Entry).decode


def redis_argument(entry: bytes, task: str) -> bytes:
    """The argument of a Redis list entry that calls ``task``, as JSON. Raises :class:`BrokenMessage`."""
    try:
        message = _decode_entry(entry)
        body = base64.b64decode(message.body, validate=True)
    except (msgspec.DecodeError, ValueError) as error:
        raise BrokenMessage(f"no Celery message: {error}") from None
    if message.headers.get("task") != task:
        raise BrokenMessage(f"the message calls another task than {task}")
    return argument_of(body)
