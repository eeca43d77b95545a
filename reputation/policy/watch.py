"""Own-source watch (N57): what DNS and TLS say of our sending addresses. Pure: answers in, findings out."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

import msgspec

ZONES = ("zen.spamhaus.org", "b.barracudacentral.org", "bl.spamcop.net")
"""Lists that mailbox providers use. Spamhaus refuses queries through public resolvers (127.255.255.x):
that is no listing."""


CHECKS = ("dnsbl", "ptr", "fcrdns", "ehlo", "certificate")
DAY = 86400.0


class Finding(msgspec.Struct, frozen=True):
    """Something wrong with a source. ``listed`` names the list that takes it out of rotation; ``fault``:
    receivers see it, so it weighs on the source's scores; else it is only said."""

    source: str
    check: str  # one of CHECKS
    detail: str
    listed: str | None = None
    fault: bool = True


class Certificate(msgspec.Struct, frozen=True):
    """What a listener at one of our addresses showed; times are real Unix seconds."""

    place: str  # address:port
    names: tuple[str, ...]
    begins: float
    ends: float


class Answers(msgspec.Struct, frozen=True):
    """What was asked for one source; None: the question got no answer (a failure finds nothing)."""

    source: str
    ip: str
    ehlo: str
    ptr: tuple[str, ...] | None = None
    forward: Mapping[str, tuple[str, ...] | None] = {}  # PTR and EHLO name -> their addresses
    zones: Mapping[str, tuple[str, ...] | None] = {}  # list -> A records; () is not listed
    certificates: tuple[Certificate, ...] = ()  # of those listeners that show one


def question(ip: str, zone: str) -> str:
    """The name to look up in a blocklist (RFC 5782): reversed octets or nibbles."""
    reverse = ipaddress.ip_address(ip).reverse_pointer
    return reverse.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa") + f".{zone}"


def listed(records: Sequence[str]) -> bool:
    """Whether a blocklist's answer is a listing: 127.0.0.0/16, not an error code (127.255.255.x)."""
    return any(record.startswith("127.0.") for record in records)


def findings(a: Answers, now: float = 0.0, days: float = 14.0) -> list[Finding]:
    """What is wrong with one source at real time ``now``; a certificate is said ``days`` before its end."""
    found = [
        finding
        for certificate in a.certificates
        for finding in certificate_findings(a.source, _clean(a.ehlo), certificate, now, days)
    ]
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


def certificate_findings(
    source: str, host: str, seen: Certificate, now: float, days: float
) -> list[Finding]:
    """Expired, not begun, ending soon (no fault yet), or made out to another name than the EHLO name."""
    found = []
    left = (seen.ends - now) / DAY
    if left <= 0:
        text = f"certificate at {seen.place} expired {-left:.0f} days ago"
        found.append(Finding(source, "certificate", text))
    elif left < days:
        text = f"certificate at {seen.place} ends in {left:.0f} days"
        found.append(Finding(source, "certificate", text, fault=False))
    if seen.begins > now:
        text = f"certificate at {seen.place} is not valid yet"
        found.append(Finding(source, "certificate", text))
    if not any(_matches(name, host) for name in seen.names):
        made_out = ", ".join(seen.names[:5]) or "nobody"
        text = f"certificate at {seen.place} is made out to {made_out}, not to {host}"
        found.append(Finding(source, "certificate", text))
    return found


def _matches(pattern: str, host: str) -> bool:
    """RFC 6125 6.4: the whole name, or one label for a leading ``*``."""
    pattern = _clean(pattern)
    if pattern.startswith("*."):
        return host.partition(".")[2] == pattern[2:]
    return pattern == host


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
