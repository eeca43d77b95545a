"""The client's core without I/O: calls to make, answers to read, when to try again.

Both transports are this file plus a loop. A submission always carries an idempotency key - the caller's
or one made here - so that a repeated call is the same message.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email.message import Message as StdMessage
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import msgspec

from mailweir.contracts.job import Accepted
from mailweir.contracts.submit import (
    BatchResult,
    Cancelled,
    JobView,
    MessageView,
    Problem,
    SubmitRequest,
    TemplateStored,
)

from . import errors
from .message import Message, Template, template_data, to_request

ATTEMPTS = 5  # of one call, when the answer is retryable
MAX_PAUSE = 20.0  # seconds between two attempts
BATCH = 500  # messages of one batch call
BATCH_BYTES = 8 * 1024 * 1024
USER_AGENT = "mailweir-client"

_encoder = msgspec.json.Encoder()
T = TypeVar("T")


class Call(NamedTuple):
    """One HTTP call."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = {}


class _Results(msgspec.Struct):
    results: list[BatchResult]


class ItemResult(msgspec.Struct, frozen=True):
    """What became of one message of :meth:`send_many`: ``accepted``, or the error."""

    index: int
    accepted: Accepted | None
    error: errors.MailError | None


class Config(NamedTuple):
    """Where the API is, and the key."""

    url: str
    api_key: str

    def __repr__(self) -> str:
        return f"Config({self.url})"


def config(url: str | None = None, api_key: str | None = None) -> Config:
    """From arguments or ``MAILWEIR_URL`` (``http(s)://[key@]host``) and ``MAILWEIR_API_KEY``."""
    text = url or os.environ.get("MAILWEIR_URL", "")
    key = api_key or os.environ.get("MAILWEIR_API_KEY", "")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise errors.ConfigurationError("set MAILWEIR_URL to http(s)://host[:port]")
    if parts.username and not key:
        key = unquote(parts.username) + (f":{unquote(parts.password)}" if parts.password else "")
    if not key:
        raise errors.ConfigurationError("set MAILWEIR_API_KEY to an API key (mailweir keys create)")
    host = parts.netloc.rpartition("@")[2]
    return Config(urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")), key)


def encode(value: object) -> bytes:
    """JSON of a value. Raises :class:`~producer.errors.ValidationError` for a lone surrogate."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        raise errors.ValidationError("a text has a lone surrogate, which is no character") from None


def submit(message: Message | StdMessage, options: Mapping[str, Any]) -> Call:
    """Send one message."""
    request = with_key(to_request(message, options))
    return Call("POST", "/v1/messages", encode(request), _JSON)


def with_key(request: SubmitRequest) -> SubmitRequest:
    """The request with an idempotency key, made once, before the first attempt."""
    if request.idempotency_key is not None:
        return request
    return msgspec.structs.replace(request, idempotency_key=f"auto:{secrets.token_hex(16)}")


def batches(
    messages: Iterable[Message | StdMessage],
    options: Mapping[str, Any],
    prefix: str | None,
) -> Iterator[tuple[int, int, Call]]:
    """Batch calls in order as (first index, messages, call); never more than one in memory."""
    lines: list[bytes] = []
    size = first = 0
    for index, message in enumerate(messages):
        request = to_request(message, options)
        if request.idempotency_key is None and prefix is not None:
            request = msgspec.structs.replace(request, idempotency_key=f"{prefix}:{index}")
        line = encode(with_key(request))
        if lines and (len(lines) >= BATCH or size + len(line) > BATCH_BYTES):
            yield first, len(lines), _batch(lines)
            lines, size, first = [], 0, index
        lines.append(line)
        size += len(line) + 1
    if lines:
        yield first, len(lines), _batch(lines)


def _batch(lines: Sequence[bytes]) -> Call:
    headers = {"Content-Type": "application/x-ndjson"}
    return Call("POST", "/v1/messages:batch", b"\n".join(lines), headers)


def store_template(template: Template) -> Call:
    """Store a template; the same one again is the same id."""
    return Call("POST", "/v1/templates", encode(template_data(template)), _JSON)


def get_message(message_id: str) -> Call:
    """A message with its jobs."""
    return Call("GET", f"/v1/messages/{quote(message_id, safe='')}")


def get_job(job_id: str) -> Call:
    """One job."""
    return Call("GET", f"/v1/jobs/{quote(job_id, safe='')}")


def cancel(message_id: str) -> Call:
    """Take back what no worker has taken yet."""
    return Call("POST", f"/v1/messages/{quote(message_id, safe='')}/cancel")


def read_accepted(status: int, headers: Mapping[str, str], body: bytes) -> Accepted:
    """The answer to a submission."""
    return _read(status, headers, body, Accepted)


def read_template(status: int, headers: Mapping[str, str], body: bytes) -> TemplateStored:
    """The answer to a stored template."""
    return _read(status, headers, body, TemplateStored)


def read_message(status: int, headers: Mapping[str, str], body: bytes) -> MessageView:
    """A message."""
    return _read(status, headers, body, MessageView)


def read_job(status: int, headers: Mapping[str, str], body: bytes) -> JobView:
    """A job."""
    return _read(status, headers, body, JobView)


def read_cancelled(status: int, headers: Mapping[str, str], body: bytes) -> Cancelled:
    """How much was cancelled."""
    return _read(status, headers, body, Cancelled)


def read_batch(
    first: int, status: int, headers: Mapping[str, str], body: bytes
) -> list[ItemResult]:
    """Results of a batch; ``first`` is the index of its first message."""
    out = []
    for result in _read(status, headers, body, _Results).results:
        if result.status == 202:
            accepted = msgspec.convert(result.answer, Accepted)
            out.append(ItemResult(first + result.index, accepted, None))
        else:
            found = result.problem or Problem("no answer", result.status, "server_error")
            out.append(ItemResult(first + result.index, None, _error(found, {})))
    return out


def pause(attempt: int, error: errors.MailError, chance: float | None = None) -> float | None:
    """Seconds before the next attempt (1 is the first that failed); None: give up and raise."""
    if not error.retryable or attempt >= ATTEMPTS:
        return None
    spread = 0.5 + (random.random() if chance is None else chance)
    wait = min(0.2 * 2.0 ** (attempt - 1), MAX_PAUSE) * spread
    return float(min(max(wait, error.retry_after or 0.0), MAX_PAUSE))


def unreachable(error: Exception) -> errors.QueueUnavailable:
    """What a transport's own error becomes: its kind, never its URL."""
    return errors.QueueUnavailable(f"no answer from the API: {type(error).__name__}")


_JSON = {"Content-Type": "application/json"}


def _read(status: int, headers: Mapping[str, str], body: bytes, kind: type[T]) -> T:
    if not 200 <= status < 300:
        raise failure(status, headers, body)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise errors.ServerError("the answer is not from a Mailweir API", status=status) from None


def failure(status: int, headers: Mapping[str, str], body: bytes) -> errors.MailError:
    """The error an answer means."""
    try:
        found = msgspec.json.decode(body, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = Problem(f"HTTP {status}", status, "server_error")
    return _error(found, headers)


def _error(found: Problem, headers: Mapping[str, str]) -> errors.MailError:
    kind: type[errors.MailError]
    if found.status in (401, 403):
        kind = errors.AuthError
    elif found.status == 404:
        kind = errors.NotFound
    elif found.status == 409:
        kind = errors.IdempotencyConflict
    elif found.status == 413:
        kind = errors.PayloadTooLarge
    elif found.status == 429:
        kind = errors.RateLimited
    elif found.status in (502, 503, 504):
        kind = errors.QueueUnavailable
    elif found.status >= 500:
        kind = errors.ServerError
    elif (found.field or "").partition("[")[0] in ("to", "cc", "bcc", "from", "mail_from"):
        kind = errors.InvalidAddress
    else:
        kind = errors.ValidationError
    wait = headers.get("retry-after", "")
    return kind(
        found.detail or found.title,
        code=found.code if found.code != "invalid" else None,
        field=found.field,
        status=found.status,
        request_id=found.request_id,
        retry_after=float(wait) if wait.isdigit() else None,
    )
