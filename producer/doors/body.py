"""Reading what a caller posts: bounded while it streams in, decoded once, errors with a path."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from producer.policy.refusal import Invalid, Refusal, TooLarge

T = TypeVar("T")


class Unsupported(Refusal):
    """A content type or encoding this door does not read."""

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class Malformed(Refusal):
    """Not JSON."""

    status = 400
    code = "malformed"
    title = "Malformed JSON"


async def read(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to be larger than ``limit`` bytes.

    Compressed bodies are refused: a small one may unpack to gigabytes."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Unsupported(None, "send the body without Content-Encoding")
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise TooLarge(None, f"a body may have {limit} bytes")
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > limit:
                raise TooLarge(None, f"a body may have {limit} bytes")
            pieces.append(piece)
    except ClientDisconnect:
        raise Malformed(None, "the caller left before the body's end") from None
    return b"".join(pieces)


def decode(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw) -> T:
    """JSON to its type. Raises :class:`Malformed`, or Invalid with the path of the value.

    msgspec knows no NaN, checks UTF-8 and surrogates, and takes the last of two equal keys; nobody
    reads the body a second time, so no other reading of it exists."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        why, path = _path(str(error))
        raise Invalid(path, why) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Malformed(None, "the body is not valid JSON") from None


def _path(text: str) -> tuple[str, str | None]:
    """msgspec's sentence and its path in our form: ``$.to[0]`` is ``to[0]``."""
    unknown = re.fullmatch(
        r"Object contains unknown field `(.{1,80}?)`(?: - at `\$\.?(.*)`)?", text
    )
    if unknown:
        path = ".".join(part for part in (unknown[2], unknown[1]) if part)
        return "there is no such field", path
    why, _, path = text.partition(" - at `$")
    return why, path.rstrip("`").lstrip(".") or None
