"""Asks DNS about our own sources and keeps what it finds; a listing takes a source out of rotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dns.exception
import dns.resolver
import dns.reversename
import prometheus_client
import structlog

from mailweir.contracts.policy import Source
from mailweir.plumbing.database import Database
from reputation.policy.watch import ZONES, Answers, Finding, findings, question
from reputation.signals import keep_listings

_FOUND = prometheus_client.Gauge(
    "mailweir_source_findings",
    "1 while a check of an own source finds something.",
    ["source", "check"],
)
_CHECKS = ("dnsbl", "ptr", "fcrdns", "ehlo")
_log = structlog.get_logger(__name__)


def ask(resolver: dns.resolver.Resolver, name: str, kind: str) -> tuple[str, ...] | None:
    """Records of a name; empty when there are none, None when DNS did not say."""
    try:
        return tuple(record.to_text() for record in resolver.resolve(name, kind))
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return ()
    except dns.exception.DNSException:
        return None


def question_source(
    resolver: dns.resolver.Resolver, source: Source, ehlo: str, zones: Sequence[str]
) -> Answers:
    """Everything the checks need to know about one source with an IP."""
    assert source.ip is not None
    kind = "AAAA" if ":" in source.ip else "A"
    ptr = ask(resolver, dns.reversename.from_address(source.ip).to_text(), "PTR")
    names = {name.rstrip(".").lower() for name in (*(ptr or ()), ehlo)}
    return Answers(
        source=source.name,
        ip=source.ip,
        ehlo=ehlo,
        ptr=ptr,
        forward={name: ask(resolver, name, kind) for name in names},
        zones={zone: ask(resolver, question(source.ip, zone), "A") for zone in zones},
    )


def watch_once(
    resolver: dns.resolver.Resolver,
    sources: Mapping[str, Source],
    hostname: str,
    database: Database,
    now: float,
    zones: Sequence[str] = ZONES,
) -> list[Finding]:
    """Check every source that has an IP; keep listings for the manager, say the rest in log and metrics."""
    own = [source for source in sources.values() if source.ip is not None and source.proxy is None]
    found: list[Finding] = []
    answered: set[str] = set()
    for source in own:
        answers = question_source(resolver, source, source.ehlo or hostname, zones)
        if any(records is not None for records in answers.zones.values()):
            answered.add(source.name)
        mine = findings(answers)
        for check in _CHECKS:
            _FOUND.labels(source.name, check).set(any(f.check == check for f in mine))
        found += mine
    for finding in found:
        _log.warning(
            "own source", source=finding.source, check=finding.check, detail=finding.detail
        )
    listed = {f.source: f.listed for f in found if f.listed is not None}
    # a source whose lists did not answer keeps what was known of it
    keep_listings(database, listed, sorted(answered), now)
    return found
