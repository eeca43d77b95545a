"""Only the owner of an API key can make bytes on the broker a message."""

from __future__ import annotations

import json

import msgspec
import pytest

from mailweir.contracts.credential import ApiKey, mac_key, sign
from mailweir.contracts.submit import Published
from producer.published import MOST_AGE, Unproven, read

KEY = ApiKey("abc123", "acme", frozenset({"send"}), ("*",), mac_key("s3cret"))
BODY = json.dumps({"from": "a@acme.test", "to": ["b@x.test"], "subject": "s", "text": "t"})
NOW = 1_800_000_000.0


def published(**changes: object) -> bytes:
    at = float(changes.get("at", NOW))  # type: ignore[arg-type]  # tests give floats
    said = Published("abc123", at, "m1", BODY, sign(KEY.mac_key, "abc123", at, "m1", BODY))
    return msgspec.json.encode(
        msgspec.structs.replace(said, **{k: v for k, v in changes.items() if k != "at"})
    )


def find(key_id: str) -> ApiKey | None:
    return KEY if key_id == "abc123" else None


def test_a_signed_message_is_read_and_keyed_by_its_id() -> None:
    request, key = read(published(), find, NOW + 1)
    assert key.tenant == "acme"
    assert request.to == ("b@x.test",)
    assert request.idempotency_key == "published:m1"


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"\x80\x04pickle", "not a published message"),
        (b"[]", "not a published message"),
        (published(key="nobody"), "unknown"),
        (published(body=BODY.replace("b@x", "c@x")), "signature"),
        (published(id="m2"), "signature"),
        (published(mac=""), "signature"),
        (published(at=NOW - MOST_AGE - 60), "too long ago"),
        (published(at=NOW + 3600), "in the future"),
    ],
)
def test_what_does_not_verify_is_a_dead_letter_with_its_reason(payload: bytes, why: str) -> None:
    with pytest.raises(Unproven, match=why):
        read(payload, find, NOW)
