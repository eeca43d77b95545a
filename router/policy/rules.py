"""Rules compiled into an index: the cost of finding the first match hardly grows with their number.

Every rule is filed under its most selective exact field (an address, a key, a domain, a tenant ...);
only rules filed under a value the job has are tried, in order, and each list is left as soon as a
better match is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from mailweir.contracts.job import Job
from mailweir.contracts.policy import Match, Rule
from router.policy.patterns import Test, alternatives, domains, is_exact, suffix_of, test_of
from router.policy.windows import is_open


class Facts(NamedTuple):
    """What rules may look at, beside the job: nothing here is looked up by a rule."""

    job: Job
    domain: str  # the recipient's, lower case
    provider: str
    sending_domain: str
    asked_pool: str  # by header or affinity; "" when nobody asked
    zone: str  # of the recipient's MX, "europe/de"; "" when unknown
    now: float


Predicate = Callable[[Facts], bool]


class CompiledRule(NamedTuple):
    """A rule, its place in the order and its test."""

    order: int
    rule: Rule
    test: Predicate


def sending_domain_of(job: Job) -> str:
    """The domain a job is sent as: what the door recorded, else the envelope sender's."""
    return (job.meta.sending_domain or job.mail_from.rpartition("@")[2]).lower()


def compile_match(match: Match) -> Predicate:
    """One function for all conditions of a match; all given fields must hold."""
    tests = list(_predicates(match))
    if not tests:
        return lambda facts: True
    if len(tests) == 1:
        return tests[0]

    def every(facts: Facts) -> bool:
        return all(test(facts) for test in tests)

    return every


def _predicates(match: Match) -> Iterator[Predicate]:
    """The conditions of a match, cheap ones first."""
    if match.bucket:
        yield _field(test_of(alternatives(match.bucket)), lambda f: f.job.bucket)
    if match.tenant:
        yield _field(test_of(alternatives(match.tenant)), lambda f: f.job.tenant.lower())
    if match.provider:
        yield _field(test_of(alternatives(match.provider)), lambda f: f.provider)
    if match.recipient_domain:
        yield _field(test_of(domains(match.recipient_domain)), lambda f: f.domain)
    if match.sending_domain:
        yield _field(test_of(domains(match.sending_domain)), lambda f: f.sending_domain)
    if match.api_key:
        yield _field(
            test_of(alternatives(match.api_key)), lambda f: (f.job.meta.api_key or "").lower()
        )
    if match.campaign:
        yield _field(
            test_of(alternatives(match.campaign)), lambda f: (f.job.meta.campaign or "").lower()
        )
    if match.pool:
        yield _field(test_of(alternatives(match.pool)), lambda f: f.asked_pool.lower())
    if match.geo:
        yield _any_zone(test_of(alternatives(match.geo)))
    if match.risk:
        yield _field(test_of(alternatives(match.risk)), lambda f: (f.job.meta.risk or "").lower())
    if match.engagement:
        yield _field(
            test_of(alternatives(match.engagement)), lambda f: f.job.meta.engagement.lower()
        )
    if match.tag:
        yield _any_tag(test_of(alternatives(match.tag)))
    if match.recipient:
        yield _field(test_of(alternatives(match.recipient)), lambda f: f.job.recipient.lower())
    for name, pattern in match.header.items():
        yield _header(name.lower(), test_of(alternatives((pattern,))))
    if match.window is not None:
        window = match.window
        yield lambda facts: is_open(window, facts.now)


def _field(test: Test, read: Callable[[Facts], str]) -> Predicate:
    return lambda facts: test(read(facts))


def _any_zone(test: Test) -> Predicate:
    """A zone is named by its continent, its country, or both."""
    return lambda f: any(test(part) for part in zones_of(f.zone))


def zones_of(zone: str) -> tuple[str, ...]:
    """The names of a zone, the narrowest first."""
    if not zone:
        return ()
    zone = zone.lower()
    return (zone, *reversed(zone.split("/"))) if "/" in zone else (zone,)


def _any_tag(test: Test) -> Predicate:
    return lambda facts: any(test(tag.lower()) for tag in facts.job.meta.tags)


def _header(name: str, test: Test) -> Predicate:
    def matches(facts: Facts) -> bool:
        value = facts.job.meta.headers.get(name)
        return value is not None and test(value.lower())

    return matches


def _filing(match: Match) -> tuple[str, tuple[str, ...]]:
    """Under which field and values a rule is filed; ``("", ())`` where no exact field is given."""
    choices = (
        ("recipient", alternatives(match.recipient)),
        ("api_key", alternatives(match.api_key)),
        ("domain", domains(match.recipient_domain)),
        ("sending_domain", domains(match.sending_domain)),
        ("campaign", alternatives(match.campaign)),
        ("tag", alternatives(match.tag)),
        ("tenant", alternatives(match.tenant)),
        ("provider", alternatives(match.provider)),
        ("bucket", alternatives(match.bucket)),
    )
    for field, values in choices:
        if values and all(is_exact(v) for v in values):
            return field, values
        if field == "domain" and values:
            ends = [(v if is_exact(v) else suffix_of(v)) for v in values]
            found = tuple(end for end in ends if end is not None)
            if len(found) == len(values):
                return "suffix", found
    return "", ()


def _anywhere(match: Match) -> Match:
    return msgspec.structs.replace(match, geo=())


_READ: dict[str, Callable[[Facts], str]] = {
    "recipient": lambda f: f.job.recipient.lower(),
    "api_key": lambda f: (f.job.meta.api_key or "").lower(),
    "domain": lambda f: f.domain,
    "sending_domain": lambda f: f.sending_domain,
    "campaign": lambda f: (f.job.meta.campaign or "").lower(),
    "tenant": lambda f: f.job.tenant.lower(),
    "provider": lambda f: f.provider,
    "bucket": lambda f: f.job.bucket,
}
_Filed = dict[str, list[CompiledRule]]


class RuleIndex:
    """All rules of a policy, ready to be asked. Immutable after construction."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        ordered = sorted(rules, key=lambda rule: rule.number)
        self.rules = tuple(
            CompiledRule(i, rule, compile_match(rule.match)) for i, rule in enumerate(ordered)
        )
        filed: dict[str, _Filed] = {}
        self._rest: list[CompiledRule] = []
        for compiled in self.rules:
            field, values = _filing(compiled.rule.match)
            if not field:
                self._rest.append(compiled)
            for value in dict.fromkeys(values):
                filed.setdefault(field, {}).setdefault(value, []).append(compiled)
        placed = [r for r in ordered if r.match.geo]
        self._placed = (
            RuleIndex(msgspec.structs.replace(r, match=_anywhere(r.match)) for r in placed)
            if placed
            else None
        )
        self._suffixes = filed.pop("suffix", {})
        self._tags = filed.pop("tag", {})
        self._plain = tuple((_READ[field], by_value) for field, by_value in filed.items())

    @property
    def asks_zones(self) -> bool:
        """Whether a rule depends on the zone of the MX."""
        return self._placed is not None

    def waits_for_zone(self, facts: Facts, found: Rule | None) -> Rule | None:
        """A rule before ``found`` that would match in some zone: while the zone is not known, nobody
        can say which of the two decides."""
        rule = self._placed.first(facts) if self._placed is not None else None
        return rule if rule and (found is None or rule.number < found.number) else None

    def first(self, facts: Facts) -> Rule | None:
        """The matching rule with the lowest number, or None."""
        lists = [found for read, by_value in self._plain if (found := by_value.get(read(facts)))]
        if self._tags:
            for tag in facts.job.meta.tags:
                if found := self._tags.get(tag.lower()):
                    lists.append(found)
        if self._suffixes:
            end = facts.domain
            while end:
                if found := self._suffixes.get(end):
                    lists.append(found)
                end = end.partition(".")[2]
        lists.append(self._rest)
        winner: Rule | None = None
        best = len(self.rules)
        for rules in lists:
            for order, rule, test in rules:
                if order >= best:
                    break
                if test(facts):
                    best, winner = order, rule
                    break
        return winner
