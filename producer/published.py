"""Accepts what was published to the ingress queue: verified by its HMAC, then the one ``accept``.

Anybody with access to the broker can push bytes; only the owner of an API key can make them a message.
What does not verify, cannot be read or is refused becomes a dead letter with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy import insert

from mailweir.contracts.credential import ApiKey, verify
from mailweir.contracts.ids import new_id
from mailweir.contracts.submit import Published, SubmitRequest
from mailweir.plumbing.apikeys import KeyRing
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database
from mailweir.spool.schema import dead_letters
from producer.accept import Reception
from producer.policy.refusal import Refusal

MOST_AGE = 72 * 3600.0
"""Real seconds after publication; an older message could repeat one whose key is forgotten (P5)."""

AHEAD = 300.0  # real seconds a publisher's clock may be ahead of ours

_published = msgspec.json.Decoder(Published)
_request = msgspec.json.Decoder(SubmitRequest)


class Unproven(Exception):
    """Not a message of ours: unreadable, unsigned, too old. The text is the dead letter's reason."""


def read(
    payload: bytes, keys: Callable[[str], ApiKey | None], real: float
) -> tuple[SubmitRequest, ApiKey]:
    """The request behind a payload and who published it. Raises :class:`Unproven`."""
    try:
        said = _published.decode(payload)
    except (msgspec.DecodeError, ValueError) as error:
        raise Unproven(f"not a published message: {error}") from None
    key = keys(said.key)
    if key is None:
        raise Unproven("unknown, revoked or expired API key")
    if not verify(key.mac_key, said.key, said.at, said.id, said.body, said.mac):
        raise Unproven("the signature does not verify")
    if not real - MOST_AGE <= said.at <= real + AHEAD:
        raise Unproven("published too long ago, or in the future")
    try:
        request = _request.decode(said.body.encode())
    except (msgspec.DecodeError, ValueError) as error:
        raise Unproven(f"not a message: {error}") from None
    if request.idempotency_key is None:
        request = msgspec.structs.replace(request, idempotency_key=f"published:{said.id}")
    return request, key


class PublishedDoor:
    """The ``accept`` and ``bury`` of the ingress consumer."""

    def __init__(
        self, reception: Reception, ring: KeyRing, database: Database, clock: Clock
    ) -> None:
        self._reception = reception
        self._ring = ring
        self._database = database
        self._clock = clock

    def accept(self, payloads: Sequence[bytes]) -> list[str | None]:
        """None for each committed payload, else why it never can be.

        Raises :class:`producer.accept.Unavailable` and DatabaseUnavailable: nothing may be removed."""
        now, real = self._clock.now(), time.time()
        answers: list[str | None] = [None] * len(payloads)
        calls: list[tuple[SubmitRequest, ApiKey]] = []
        places: list[int] = []
        for place, payload in enumerate(payloads):
            try:
                calls.append(read(payload, lambda key_id: self._ring.by_id(key_id, now), real))
                places.append(place)
            except Unproven as error:
                answers[place] = str(error)
        for place, answer in zip(places, self._reception.accept_many(calls), strict=True):
            if isinstance(answer, Refusal):
                answers[place] = f"{answer.field or 'message'}: {answer.why}"
        return answers

    def bury(self, payload: bytes, reason: str) -> None:
        """Keep a dead letter. Raises DatabaseUnavailable."""
        with self._database.write() as conn:
            conn.execute(
                insert(dead_letters).values(
                    id=new_id(),
                    at=self._clock.now(),
                    origin="ingress",
                    reason=reason[:1000],
                    body=payload,
                )
            )
