"""What is known of recipients' domains from their MX: provider, site, geo zone.

Workers, who resolve MX anyway, write it to Redis; routers read it per batch and may ask for a domain.
Notes live in one hash per :data:`SPAN`, the present and the last one are read, each holds at most
:data:`MOST` domains and expires: what is lost or dropped is learnt again. A domain is no address.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import msgspec
from redis import Redis

from mailweir.plumbing import keys

SPAN = 6 * 3600  # real seconds of one hash
MOST = 200_000  # domains a hash holds
MOST_ASKED = 10_000  # domains that wait to be resolved


class MxNote(NamedTuple):
    """One domain. Without provider it takes no mail; without zone its zone cannot be known."""

    provider: str
    site: str
    zone: str


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(MxNote).decode


def encode(note: MxNote) -> bytes:
    """As it stands in the hash."""
    return _encode(note)


def hash_of(real: float) -> str:
    """The hash written at ``real`` (Unix seconds)."""
    return keys.mx_notes(int(real // SPAN))


def read(client: Redis, domains: Sequence[str], real: float) -> dict[str, MxNote]:
    """The notes of those domains that have one. Raises ``redis.exceptions.RedisError``."""
    if not domains:
        return {}
    pipe: Any = client.pipeline(transaction=False)
    for at in (real - SPAN, real):
        pipe.hmget(hash_of(at), domains)
    notes: dict[str, MxNote] = {}
    for found in cast("list[list[bytes | None]]", pipe.execute()):
        for domain, body in zip(domains, found, strict=True):
            if body is not None:
                notes[domain] = _decode(body)  # the newer hash is read last
    return notes


def ask(client: Redis, domains: Iterable[str]) -> None:
    """Have workers resolve these. Raises ``redis.exceptions.RedisError``."""
    wanted = list(domains)
    if wanted and int(client.scard(keys.MX_ASKED)) < MOST_ASKED:
        client.sadd(keys.MX_ASKED, *wanted[:MOST_ASKED])
