"""Which mailbox provider receives: from its MX names where they are known, else from the domain.

Limits are kept per provider found from the MX names (MX rollup): hundreds of small domains behind one
operator's MX share that operator's patience. Suffixes match on a label boundary, so ``evilgoogle.com``
is not Google. Pure; the data, with its sources, is ``data/providers.yaml``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

from mailweir.contracts.policy import Provider, Throttle

LANES = 64
"""Hash lanes for domains no rule knows: ``~00`` .. ``~3f``."""

_COUNTRY_SECOND = frozenset({"co", "com", "net", "org", "ne", "or"})


class _Book(NamedTuple):
    """providers.yaml, turned into look-up tables."""

    suffixes: dict[str, str]  # MX suffix -> provider
    domains: dict[str, str]
    any_country: dict[str, str]  # "yahoo" of "yahoo.*"
    below: dict[str, str]  # "rr.com" of "*.rr.com"
    aliases: dict[str, str]
    limits: dict[str, Provider]


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    source: str
    mx: list[str]
    domains: list[str] = []
    aliases: list[str] = []
    conn: int = 3
    per_conn: int = 20
    rate: int = 60
    cold: int = 10
    tls: str = "opportunistic"
    idle: float = 30.0
    retry_min: float | None = None
    per_rcpt_hour: int | None = None
    ipv6: bool = True


def read_data(name: str) -> Any:
    """One of the YAML files beside this package."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (files("mailweir.mail") / "data" / name).read_text("utf-8")
    return yaml.load(text, Loader=loader)  # noqa: S506 - one of the two safe loaders, chosen above


@cache
def _book() -> _Book:
    raw = read_data("providers.yaml")
    book = _Book({}, {}, {}, {}, {}, {})
    for name, fields in raw["providers"].items():
        row = msgspec.convert({**raw["defaults"], **fields}, _Row)
        book.suffixes.update(dict.fromkeys(row.mx, name))
        book.aliases.update(dict.fromkeys([name, *row.aliases], name))
        for domain in row.domains:
            if domain.endswith(".*"):
                book.any_country[domain[:-2]] = name
            elif domain.startswith("*."):
                book.below[domain[2:]] = name
            else:
                book.domains[domain] = name
        book.limits[name] = Provider(
            name=name,
            connections=row.conn,
            per_connection=row.per_conn,
            rate=Throttle(row.rate, 60.0),
            cold_rate=Throttle(row.cold, 60.0),
            tls=row.tls,
            idle=row.idle,
            retry_min=row.retry_min,
            ipv6=row.ipv6,
            per_recipient_hour=row.per_rcpt_hour,
        )
    return book


def default_providers() -> dict[str, Provider]:
    """Limits per named provider; a provider not in here gets ``Provider(name)``'s defaults."""
    return dict(_book().limits)


def _clean(host: str) -> str:
    return host.strip().rstrip(".").lower()


@lru_cache(maxsize=65536)
def provider_of_domain(domain: str) -> str | None:
    """The provider a recipient domain is known to belong to, without DNS; None where no rule knows."""
    book = _book()
    domain = _clean(domain)
    found = book.domains.get(domain)
    if found is not None:
        return found
    first, _, rest = domain.partition(".")
    if first in book.any_country and _is_country_suffix(rest):
        return book.any_country[first]
    while rest:
        if rest in book.below:
            return book.below[rest]
        rest = rest.partition(".")[2]
    return None


def _is_country_suffix(rest: str) -> bool:
    """``de``, ``com``, ``co.uk``, ``com.br``; not ``evil.com``."""
    head, _, tail = rest.partition(".")
    if not tail:
        return 2 <= len(head) <= 3
    return head in _COUNTRY_SECOND and len(tail) == 2


@lru_cache(maxsize=65536)
def _provider_of_host(host: str) -> str | None:
    suffixes = _book().suffixes
    while host:
        found = suffixes.get(host)
        if found is not None:
            return found
        host = host.partition(".")[2]
    return None


def provider_of_mx(hosts: Sequence[str], domain: str) -> str:
    """The provider behind MX hosts (best preference first), by the longest suffix a rule knows.

    Unknown hosts: the registrable domain of the best one, so that one operator's hosts share a
    provider. No hosts at all (implicit MX): what is known of the domain, else the domain.
    """
    names = [_clean(host) for host in hosts]
    for host in names:
        found = _provider_of_host(host)
        if found is not None:
            return found
    if names and names[0]:
        return registrable(names[0])
    return provider_of_domain(domain) or registrable(_clean(domain))


@cache
def suffix_list() -> Any:
    """The public suffix list. 100 ms to load and more: only where it is needed, and there before the
    first mail waits for it."""
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList()


@lru_cache(maxsize=65536)
def registrable(host: str) -> str:
    """The registrable domain of a host name (publicsuffix.org), or the name itself."""
    return str(suffix_list().privatesuffix(host) or host)


@lru_cache(maxsize=65536)
def lane_of(domain: str) -> str:
    """The lane a job waits in: its provider where the domain tells it, else one of 64 hash lanes."""
    found = provider_of_domain(domain)
    if found is not None:
        return found
    digest = hashlib.blake2s(_clean(domain).encode(), digest_size=1).digest()[0]
    return f"~{digest % LANES:02x}"


def site_of(hosts: Sequence[str]) -> str:
    """A short stable name for the set of MX hosts: domains with the same set share it.

    One host is its own name; several are the first by name, ``~`` and a hash of all.
    """
    names = sorted({_clean(host) for host in hosts})
    if len(names) == 1:
        return names[0]
    if not names:
        return ""
    digest = hashlib.blake2s(" ".join(names).encode(), digest_size=4).hexdigest()
    return f"{names[0]}~{digest}"


@lru_cache(maxsize=4096)
def known_provider(name: str | None) -> str | None:
    """A provider's own name from any name people use for it: ``Hotmail``, ``microsoft365``, ``web.de``,
    an MX host name. None where nobody knows it."""
    if not name:
        return None
    text = _clean(name)
    book = _book()
    plain = text.replace(" ", "-").replace("_", "-")
    return (
        book.aliases.get(text)
        or book.aliases.get(plain)
        or book.aliases.get(plain.replace("-", "_"))
        or provider_of_domain(text)
        or _provider_of_host(text)
    )
