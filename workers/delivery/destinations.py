"""From a recipient's domain to the hops that take its mail (RFC 5321 5.1, RFC 7505), and how they must
be encrypted (MTA-STS, RFC 8461; DANE, RFC 7672)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby

from mailweir.contracts.policy import Policy, Source
from mailweir.mail.providers import provider_of_domain, provider_of_mx, site_of
from mailweir.plumbing.settings import Settings
from workers.delivery import dane
from workers.delivery.dns import DnsTrouble, Found, Mx, NoSuchName, Resolver
from workers.delivery.mta_sts import MtaSts
from workers.delivery.sts_policy import StsPolicy
from workers.delivery.types import Destination, Hop, Tlsa

__all__ = ["Destinations", "DnsTrouble", "NoMail"]

NO_MX = "555 no MX record"  # the wording a domain without mail is reported with (S34)
ADDRESSES = 2  # addresses tried per MX host and family
MAPPED_KEPT = 10_000  # domains of the static map whose destination is remembered


class NoMail(Exception):
    """This domain takes no mail: permanent. ``detail`` is the standard code behind ``reply``."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.reply = NO_MX
        self.detail = detail


class Destinations:
    """Static MX map first, then DNS. Belongs to one event loop; close it."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy | None = None,
        resolver: Resolver | None = None,
        sts: MtaSts | None = None,
        learn: Callable[[str, Destination | None], None] | None = None,
    ) -> None:
        """``learn`` is told what was resolved, None for a domain that takes no mail."""
        self._settings = settings
        self._learn = learn
        self._policy = policy or Policy()
        self._resolver = resolver or Resolver(settings.dns, validated=settings.smtp.dane)
        self._sts = sts or MtaSts(self._resolver, allow_private=settings.smtp.allow_private)
        self._map = {
            domain.lower().rstrip("."): _mapped(hosts, settings.smtp.port)
            for domain, hosts in settings.dns.mx_map.items()
            if hosts
        }
        self._mapped: dict[str, Destination] = {}

    async def resolve(self, domain: str, source: Source | None = None) -> Destination:
        """Where mail for ``domain`` (A-label, lower case) goes, by ``source``.

        A relay's mail goes to the relay, yet keeps its recipient's provider. Raises :class:`NoMail`
        (permanent), :class:`DnsTrouble` (temporary).
        """
        known = self.known(domain, source)
        if known is not None:
            if self._learn is not None and (source is None or source.kind == "mx"):
                self._learn(domain, known)  # somebody may have asked for it again
            return known
        try:
            found = await self._by_mx(domain)
        except NoMail:
            if self._learn is not None:
                self._learn(domain, None)
            raise
        if self._learn is not None:
            self._learn(domain, found)
        return found

    def known(self, domain: str, source: Source | None = None) -> Destination | None:
        """The answer where nobody must be asked: a relay, or an entry of the static map."""
        if source is not None and source.kind != "mx":
            return self._relay(domain, source)
        found = self._mapped.get(domain)
        if found is not None:
            return found
        mapped = self._map.get(domain) or self._map.get("*")
        if not mapped:
            return None
        found = Destination(mapped[0], _provider_by_name(domain), mapped[1])
        if len(self._mapped) >= MAPPED_KEPT:
            self._mapped.clear()
        self._mapped[domain] = found
        if self._learn is not None:
            self._learn(domain, found)
        return found

    async def _by_mx(self, domain: str) -> Destination:
        (hosts, secure), sts = await asyncio.gather(self._mx_hosts(domain), self._wish(domain))
        provider = provider_of_mx(hosts, domain)
        known = self._policy.providers.get(provider)
        hops = await self._hops(hosts, ipv6=known is None or known.ipv6, secure=secure)
        if not hops:
            if hosts == (domain,):
                raise NoMail("556 5.1.2 the domain has neither an MX nor an address record")
            raise DnsTrouble(f"no MX host of {domain} has an address")
        return Destination(site_of(hosts), provider, _enforced(domain, hops, sts))

    async def close(self) -> None:
        """Leave no policy fetch behind."""
        await self._sts.close()

    async def _wish(self, domain: str) -> StsPolicy | None:
        return await self._sts.policy(domain) if self._settings.smtp.mta_sts else None

    def _relay(self, domain: str, source: Source) -> Destination:
        host = source.host or ""
        provider = _provider_by_name(domain)
        hop = Hop(host, source.port, implicit_tls=source.port == 465, trusted=True)
        return Destination(f"{host}:{source.port}", provider, (hop,))

    async def _mx_hosts(self, domain: str) -> tuple[tuple[str, ...], bool]:
        """MX hosts by preference, and whether DNSSEC vouches for them."""
        try:
            records, secure = await self._resolver.lookup("MX", domain)
        except NoSuchName:
            raise NoMail("556 5.1.2 the domain does not exist") from None
        if not records:
            return (domain,), secure  # implicit MX (RFC 5321 5.1)
        if records[0].host == "":
            raise NoMail("556 5.1.10 the domain takes no mail (null MX, RFC 7505)")
        return tuple(_shuffled(records))[: self._settings.smtp.max_mx], secure

    async def _hops(self, hosts: Sequence[str], *, ipv6: bool, secure: bool) -> tuple[Hop, ...]:
        """The addresses of the hosts, in the hosts' order; a host whose lookup fails is left out while
        another answers."""
        port = self._settings.smtp.port
        hops: list[Hop] = []
        trouble: DnsTrouble | None = None
        for host in hosts:
            known: list[Found] = []
            for kind in ("A", "AAAA") if ipv6 else ("A",):
                try:
                    known.append(await self._resolver.lookup(kind, host))
                except NoSuchName:
                    break
                except DnsTrouble as error:
                    trouble = error
            validated = secure and any(found.records and found.secure for found in known)
            try:
                tlsa = await self._tlsa(host, port) if validated else None
            except DnsTrouble as error:
                trouble = error  # RFC 7672 2.1.2: whoever hides the records wins no plain text
                continue
            hops += [
                Hop(host, port, address, tlsa=tlsa)
                for found in known
                for address in found.records[:ADDRESSES]
            ]
        if not hops and trouble is not None:
            raise trouble
        return tuple(hops[: self._settings.smtp.max_mx])

    async def _tlsa(self, host: str, port: int) -> tuple[Tlsa, ...] | None:
        """The usable TLSA records of a host, empty where it has only others; None: DANE does not apply
        (RFC 7672 2.2). Asked at the host's own name: an MX host is no alias (RFC 5321 5.1)."""
        if not self._settings.smtp.dane:
            return None
        try:
            found = await self._resolver.lookup("TLSA", f"_{port}._tcp.{host}")
        except NoSuchName:
            return None
        if not (found.secure and found.records):
            return None
        return tuple(sorted(record for record in found.records if dane.usable(record)))


def _enforced(domain: str, hops: tuple[Hop, ...], sts: StsPolicy | None) -> tuple[Hop, ...]:
    """The hops an enforced MTA-STS policy leaves, marked; those with TLSA records answer to these
    (RFC 8461 2). Raises :class:`DnsTrouble` where none is left: an MX record it does not name may be
    forged."""
    if sts is None or sts.mode != "enforce":
        return hops
    left = tuple(
        hop if hop.tlsa is not None else replace(hop, verified=True)
        for hop in hops
        if hop.tlsa is not None or sts.allows(hop.host)
    )
    if not left:
        raise DnsTrouble(f"no MX host of {domain} is named by its MTA-STS policy")
    return left


@lru_cache(maxsize=50_000)
def _provider_by_name(domain: str) -> str:
    """The provider where no MX is asked: by the domain, else its registrable domain."""
    return provider_of_domain(domain) or provider_of_mx((domain,), domain)


def _mapped(hosts: Sequence[str], port: int) -> tuple[str, tuple[Hop, ...]]:
    """Site and hops of an entry of the MX map."""
    hops = tuple(_hop(text, port) for text in hosts)
    return ",".join(sorted({f"{hop.host}:{hop.port}" for hop in hops})), hops


def _shuffled(records: Sequence[Mx]) -> list[str]:
    """Hosts by preference, equal ones in random order (RFC 5321 5.1: spread the load)."""
    hosts: list[str] = []
    for _, group in groupby(records, key=lambda r: r.preference):
        equal = [record.host for record in group]
        random.shuffle(equal)
        hosts += equal
    return list(dict.fromkeys(hosts))


def _hop(text: str, default_port: int) -> Hop:
    """A hop of the MX map: ``host``, ``host:port``, ``[IPv6]:port``."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.lstrip(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    return Hop(host, int(port or default_port), trusted=True)
