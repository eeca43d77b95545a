"""Own-source watch (N57): what DNS says of our sending addresses. Pure: answers in, findings out."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

import msgspec

ZONES = ("zen.spamhaus.org", "b.barracudacentral.org", "bl.spamcop.net")
"""Lists that mailbox providers use. Spamhaus refuses queries through public resolvers (127.255.255.x):
that is no listing."""


class Finding(msgspec.Struct, frozen=True):
    """Something wrong with a source. ``listed`` names the list that takes it out of rotation."""

    source: str
    check: str  # dnsbl | ptr | fcrdns | ehlo
    detail: str
    listed: str | None = None


class Answers(msgspec.Struct, frozen=True):
    """What was asked for one source; None: the question got no answer (a failure finds nothing)."""

    source: str
    ip: str
    ehlo: str
    ptr: tuple[str, ...] | None = None
    forward: Mapping[str, tuple[str, ...] | None] = {}  # PTR and EHLO name -> their addresses
    zones: Mapping[str, tuple[str, ...] | None] = {}  # list -> A records; () is not listed


def question(ip: str, zone: str) -> str:
    """The name to look up in a blocklist (RFC 5782): reversed octets or nibbles."""
    reverse = ipaddress.ip_address(ip).reverse_pointer
    return reverse.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa") + f".{zone}"


def listed(records: Sequence[str]) -> bool:
    """Whether a blocklist's answer is a listing: 127.0.0.0/16, not an error code (127.255.255.x)."""
    return any(record.startswith("127.0.") for record in records)


def findings(a: Answers) -> list[Finding]:
    """What is wrong with one source."""
    found = []
    for zone, records in a.zones.items():
        if records and listed(records):
            codes = ", ".join(sorted(records))
            found.append(Finding(a.source, "dnsbl", f"{a.ip} is listed by {zone} ({codes})", zone))
    if a.ptr is not None:
        found += _names(a)
    addresses = a.forward.get(_clean(a.ehlo))
    if addresses is not None and not _has(addresses, a.ip):
        found.append(Finding(a.source, "ehlo", f"EHLO name {a.ehlo} does not resolve to {a.ip}"))
    return found


def _names(a: Answers) -> list[Finding]:
    names = [_clean(name) for name in a.ptr or ()]
    if not names:
        return [Finding(a.source, "ptr", f"{a.ip} has no PTR record")]
    found = []
    confirmed = [n for n in names if _has(a.forward.get(n) or (), a.ip)]
    unknown = [n for n in names if a.forward.get(n) is None]
    if not confirmed and not unknown:
        found.append(
            Finding(a.source, "fcrdns", f"PTR {', '.join(names)} does not resolve back to {a.ip}")
        )
    if _clean(a.ehlo) not in names:
        found.append(
            Finding(a.source, "ehlo", f"EHLO name {a.ehlo} is not the PTR ({', '.join(names)})")
        )
    return found


def _has(addresses: Sequence[str], ip: str) -> bool:
    wanted = ipaddress.ip_address(ip)
    return any(ipaddress.ip_address(address) == wanted for address in addresses)


def _clean(name: str) -> str:
    return name.rstrip(".").lower()
