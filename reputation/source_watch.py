"""Asks DNS and the listeners at our own addresses, and keeps what it finds: a listing takes a source out of
rotation, a fault of its names or its certificate weighs on its scores."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Mapping, Sequence

import dns.exception
import dns.nameserver
import dns.resolver
import dns.reversename
import msgspec
import prometheus_client
import structlog

from mailweir.contracts.policy import Policy, Source
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database, DatabaseUnavailable
from mailweir.plumbing.policies import NoPolicy
from mailweir.plumbing.settings import Settings
from reputation import certificate_look
from reputation.policy.watch import (
    CHECKS,
    ZONES,
    Answers,
    Certificate,
    Finding,
    findings,
    question,
)
from reputation.signals import keep_faults, keep_listings

_FOUND = prometheus_client.Gauge(
    "mailweir_source_findings",
    "1 while a check of an own source finds something.",
    ["source", "check"],
)
Look = Callable[[str, int, float], Certificate | None]
_log = structlog.get_logger(__name__)


class SourceWatch:
    """Looks at the own sources every so often; sources at private addresses have nothing to look up."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        policy: Callable[[], Policy],
        clock: Clock,
        look_at: Look = certificate_look.look,
    ) -> None:
        self._every = settings.reputation.watch_every
        self._hostname = settings.smtp.hostname or socket.getfqdn()
        self._database = database
        self._policy = policy
        self._clock = clock
        self._tls = settings.reputation
        self._look_at = look_at
        self._resolver = dns.resolver.Resolver(configure=not settings.dns.nameservers)
        if settings.dns.nameservers:
            places = [_place(text) for text in settings.dns.nameservers]
            self._resolver.nameservers = [dns.nameserver.Do53Nameserver(*place) for place in places]
        self._resolver.lifetime = settings.dns.timeout

    def run(self, stop: Callable[[], bool], beat: Callable[[], None] = lambda: None) -> None:
        """Work until ``stop()``."""
        due = time.monotonic()
        while not stop():
            beat()
            if self._every and time.monotonic() >= due:
                due = time.monotonic() + self._every
                try:
                    self.look(beat)
                except (DatabaseUnavailable, NoPolicy) as error:
                    due = time.monotonic() + min(self._every, 5.0)
                    _log.warning("own-source watch waits", error=str(error))
            time.sleep(0.2)

    def look(self, beat: Callable[[], None] = lambda: None) -> list[Finding]:
        """One look, source by source. Raises DatabaseUnavailable, NoPolicy."""
        found: list[Finding] = []
        for name, source in self._policy().sources.items():
            beat()
            if source.ip is not None and ipaddress.ip_address(source.ip).is_global:
                found += watch_once(
                    self._resolver,
                    {name: source},
                    self._hostname,
                    self._database,
                    self._clock.now(),
                    certificates=self._certificates(source.ip),
                    days=self._tls.watch_certificate_days,
                )
        return found

    def _certificates(self, ip: str) -> tuple[Certificate, ...]:
        """What the listeners at one address show, where there are any."""
        seen = (self._look_at(ip, port, self._tls.watch_timeout) for port in self._tls.watch_ports)
        return tuple(certificate for certificate in seen if certificate is not None)


def _place(text: str) -> tuple[str, int]:
    """Address and port of a resolver in the settings: ``192.0.2.1`` or ``192.0.2.1:53``."""
    host, colon, port = text.rpartition(":")
    if not colon or ":" in host:
        return text, 53
    return host, int(port)


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
    *,
    certificates: tuple[Certificate, ...] = (),
    days: float = 14.0,
) -> list[Finding]:
    """Check every source that has an IP; keep listings and faults for the manager, say the rest in log and
    metrics. ``certificates``: shown at the source's address."""
    own = [source for source in sources.values() if source.ip is not None and source.proxy is None]
    found: list[Finding] = []
    answered: set[str] = set()
    for source in own:
        answers = question_source(resolver, source, source.ehlo or hostname, zones)
        if any(records is not None for records in answers.zones.values()):
            answered.add(source.name)
        answers = msgspec.structs.replace(answers, certificates=certificates)
        mine = findings(answers, time.time(), days)
        for check in CHECKS:
            _FOUND.labels(source.name, check).set(any(f.check == check for f in mine))
        found += mine
    for finding in found:
        _log.warning(
            "own source", source=finding.source, check=finding.check, detail=finding.detail
        )
    listed = {f.source: f.listed for f in found if f.listed is not None}
    # a source whose lists did not answer keeps what was known of it
    keep_listings(database, listed, sorted(answered), now)
    faults = {
        source.name: tuple(
            dict.fromkeys(
                f.check for f in found if f.source == source.name and f.fault and f.listed is None
            )
        )
        for source in own
    }
    standing = {name: checks for name, checks in faults.items() if checks}
    keep_faults(database, standing, sorted(faults), now)
    return found
