"""From a recipient's domain to the hops that take its mail (RFC 5321 5.1, RFC 7505)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

from mailweir.contracts.policy import Policy, Source
from mailweir.mail.providers import provider_of_domain, provider_of_mx, site_of
from mailweir.plumbing.settings import Settings
from workers.delivery.dns import DnsTrouble, Mx, NoSuchName, Resolver
from workers.delivery.types import Destination, Hop

__all__ = ["Destinations", "DnsTrouble", "NoMail"]

NO_MX = "555 no MX record"  # the wording a domain without mail is reported with (S34)
ADDRESSES = 2  # addresses tried per MX host and family


class NoMail(Exception):
    """This domain takes no mail: permanent. ``detail`` is the standard code behind ``reply``."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.reply = NO_MX
        self.detail = detail


class Destinations:
    """Static MX map first, then DNS. Belongs to one event loop."""

    def __init__(
        self, settings: Settings, policy: Policy | None = None, resolver: Resolver | None = None
    ) -> None:
        self._settings = settings
        self._policy = policy or Policy()
        self._resolver = resolver or Resolver(settings.dns)
        self._map = {
            domain.lower().rstrip("."): _mapped(hosts, settings.smtp.port)
            for domain, hosts in settings.dns.mx_map.items()
            if hosts
        }

    async def resolve(self, domain: str, source: Source | None = None) -> Destination:
        """Where mail for ``domain`` (A-label, lower case) goes, by ``source``.

        A relay's mail goes to the relay, yet keeps its recipient's provider. Raises :class:`NoMail`
        (permanent), :class:`DnsTrouble` (temporary).
        """
        if source is not None and source.kind != "mx":
            return self._relay(domain, source)
        mapped = self._map.get(domain) or self._map.get("*")
        if mapped:
            return Destination(mapped[0], _provider_by_name(domain), mapped[1])
        hosts = await self._mx_hosts(domain)
        provider = provider_of_mx(hosts, domain)
        known = self._policy.providers.get(provider)
        hops = await self._hops(hosts, ipv6=known is None or known.ipv6)
        if not hops:
            if hosts == (domain,):
                raise NoMail("556 5.1.2 the domain has neither an MX nor an address record")
            raise DnsTrouble(f"no MX host of {domain} has an address")
        return Destination(site_of(hosts), provider, hops)

    def _relay(self, domain: str, source: Source) -> Destination:
        host = source.host or ""
        provider = _provider_by_name(domain)
        hop = Hop(host, source.port, implicit_tls=source.port == 465, trusted=True)
        return Destination(f"{host}:{source.port}", provider, (hop,))

    async def _mx_hosts(self, domain: str) -> tuple[str, ...]:
        try:
            records = await self._resolver.mx(domain)
        except NoSuchName:
            raise NoMail("556 5.1.2 the domain does not exist") from None
        if not records:
            return (domain,)  # implicit MX (RFC 5321 5.1)
        if records[0].host == "":
            raise NoMail("556 5.1.10 the domain takes no mail (null MX, RFC 7505)")
        return tuple(_shuffled(records))[: self._settings.smtp.max_mx]

    async def _hops(self, hosts: Sequence[str], *, ipv6: bool) -> tuple[Hop, ...]:
        """The addresses of the hosts, in the hosts' order; a host whose lookup fails is left out while
        another answers."""
        port = self._settings.smtp.port
        hops: list[Hop] = []
        trouble: DnsTrouble | None = None
        for host in hosts:
            for kind in ("A", "AAAA") if ipv6 else ("A",):
                try:
                    found = await self._resolver.addresses(host, kind)
                except DnsTrouble as error:
                    trouble = error
                    continue
                hops += [Hop(host, port, address) for address in found[:ADDRESSES]]
        if not hops and trouble is not None:
            raise trouble
        return tuple(hops[: self._settings.smtp.max_mx])


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
