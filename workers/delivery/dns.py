"""MX, address, TXT and TLSA lookups with a cache: TTLs clamped, failures remembered briefly, one query
at a time per name. dnspython's asyncio resolver underneath; the operator is best served by a local resolver.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.name
import dns.resolver

from mailweir.plumbing.settings import DnsSettings
from workers.delivery.types import Tlsa

CACHE_SIZE = 50_000  # names kept; the oldest entries go first
MAX_CNAMES = 8  # dnspython follows chains itself; a longer one is its failure, ours to report


class DnsTrouble(Exception):
    """A temporary failure: SERVFAIL, timeout, broken answer. 4.4.3, to be retried."""


class NoSuchName(Exception):
    """NXDOMAIN: the name does not exist."""


@dataclass(frozen=True, slots=True)
class Mx:
    """One MX record. A null MX (RFC 7505) is the only record and has an empty host."""

    preference: int
    host: str  # lower case, no trailing dot


class Found(NamedTuple):
    """Records of one name and kind; ``secure``: the resolver says DNSSEC vouches for them (AD bit),
    also for there being none."""

    records: tuple[Any, ...] = ()
    secure: bool = False


class Resolver:
    """Belongs to one event loop. ``validated`` asks the resolver which answers DNSSEC vouches for."""

    def __init__(self, settings: DnsSettings, *, validated: bool = False) -> None:
        self._settings = settings
        if settings.nameservers:
            self._resolver = dns.asyncresolver.Resolver(configure=False)
            self._resolver.nameservers = [_server(text)[0] for text in settings.nameservers]
            self._resolver.nameserver_ports = dict(_server(text) for text in settings.nameservers)
        else:
            self._resolver = dns.asyncresolver.Resolver()
        self._resolver.timeout = settings.timeout
        self._resolver.lifetime = settings.lifetime
        if validated:
            # RFC 6840 5.7: AD in the question asks for AD in the answer, without signatures
            self._resolver.flags = dns.flags.RD | dns.flags.AD
            self._resolver.use_edns(0, 0, 1232)
        self._cache: dict[tuple[str, str], tuple[float, Any]] = {}  # -> (until, value or error)
        self._flights: dict[tuple[str, str], asyncio.Task[Any]] = {}

    async def mx(self, domain: str) -> tuple[Mx, ...]:
        """MX records by preference; empty where the domain exists without one.

        Raises :class:`NoSuchName`, :class:`DnsTrouble`.
        """
        return (await self.lookup("MX", domain)).records

    async def addresses(self, host: str, kind: str) -> tuple[str, ...]:
        """``A`` or ``AAAA`` addresses; empty where there are none. Raises :class:`DnsTrouble`."""
        try:
            return (await self.lookup(kind, host)).records
        except NoSuchName:
            return ()

    async def texts(self, name: str) -> tuple[str, ...]:
        """TXT records, their strings joined; empty where there are none. Raises :class:`DnsTrouble`."""
        try:
            return (await self.lookup("TXT", name)).records
        except NoSuchName:
            return ()

    async def lookup(self, kind: str, name: str) -> Found:
        """Records of a kind: ``MX`` as :class:`Mx` by preference, ``TLSA`` as
        :class:`~workers.delivery.types.Tlsa`, others as text.

        Raises :class:`NoSuchName`, :class:`DnsTrouble`.
        """
        key = (kind, name)
        known = self._cache.get(key)
        if known is not None and known[0] > time.monotonic():
            return _value(known[1])
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(self._ask(kind, name))
            self._flights[key] = flight
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        # one asker that gives up must not take the answer from the others
        return _value(await asyncio.shield(flight))

    async def _ask(self, kind: str, name: str) -> Any:
        """Query, remember, return the value or the error (not raised: the cache holds both)."""
        settings = self._settings
        keep = settings.negative_ttl
        value: Any
        try:
            answer = await self._resolver.resolve(name, kind, raise_on_no_answer=False)
            if answer.rrset is None:
                records: tuple[Any, ...] = ()
            else:
                keep = min(max(float(answer.rrset.ttl), settings.min_ttl), settings.max_ttl)
                records = _READ[kind](answer)
            value = Found(records, bool(answer.response.flags & dns.flags.AD))
        except dns.resolver.NXDOMAIN:
            value = NoSuchName(f"{name} does not exist")
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            value = DnsTrouble(f"{kind} lookup of {name} failed: {type(error).__name__}")
        if len(self._cache) >= CACHE_SIZE:
            for old in list(self._cache)[: CACHE_SIZE // 10]:
                del self._cache[old]
        self._cache[(kind, name)] = (time.monotonic() + keep, value)
        return value


def _value(value: Found | Exception) -> Found:
    if isinstance(value, Exception):
        raise type(value)(*value.args)
    return value


def _mx(answer: dns.resolver.Answer) -> tuple[Mx, ...]:
    records = [
        Mx(int(r.preference), r.exchange.to_text(omit_final_dot=True).lower()) for r in answer
    ]
    # "." is a null MX only when it stands alone (RFC 7505 3)
    if len(records) > 1:
        records = [r for r in records if r.host not in ("", ".", "@")]
    else:
        records = [Mx(r.preference, "" if r.host in (".", "@") else r.host) for r in records]
    return tuple(sorted(records, key=lambda r: r.preference))


def _addresses(answer: dns.resolver.Answer) -> tuple[str, ...]:
    return tuple(str(record.address) for record in answer)


def _texts(answer: dns.resolver.Answer) -> tuple[str, ...]:
    return tuple(b"".join(record.strings).decode("utf-8", "replace") for record in answer)


def _tlsa(answer: dns.resolver.Answer) -> tuple[Tlsa, ...]:
    return tuple(Tlsa(r.usage, r.selector, r.mtype, bytes(r.cert)) for r in answer)


_READ: dict[str, Callable[[dns.resolver.Answer], tuple[Any, ...]]] = {
    "MX": _mx, "A": _addresses, "AAAA": _addresses, "TXT": _texts, "TLSA": _tlsa,
}  # fmt: skip


def _server(text: str) -> tuple[str, int]:
    """``IP``, ``IP:port`` or ``[IPv6]:port``."""
    if text.startswith("["):
        host, _, port = text[1:].partition("]:")
        return host.rstrip("]"), int(port or 53)
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, int(port)
    return text, 53
