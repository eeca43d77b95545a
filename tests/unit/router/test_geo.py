"""Geo zones: from a database of addresses to rules, and what happens while a zone is not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailweir.contracts.route import Held, Routed
from mailweir.plumbing.geo import Geo, GeoUnreadable
from router.policy.decide import route
from router.policy.loader import load
from tests.services import mmdb
from tests.unit.router.build import FRESH, NOW, context, job

POLICY = """
regions: [eu, us]
sources:
  eu-1: {region: eu, buckets: [marketing, bulk]}
  us-1: {region: us, buckets: [marketing, bulk]}
pools:
  all: {sources: [us-1, eu-1]}
geo:
  europe: {eu: 100}
  ca: {us: 100}
residency:
  eu-only: [eu]
rules:
  - name: germans
    match: {geo: de}
    action: {pool: all, region: eu}
  - name: shop
    match: {tag: shop}
    action: {pool: all}
  - name: americans
    match: {geo: america}
    action: {pool: all, region: us}
  - name: rest
    action: {pool: all}
"""


@pytest.fixture(scope="module")
def policy():
    loaded = load(POLICY.encode(), file="policy.yaml")
    assert loaded.ok, loaded.errors
    return loaded.policy


def test_a_database_gives_continent_and_country(tmp_path: Path) -> None:
    path = mmdb.write(
        tmp_path / "geo.mmdb",
        {
            "192.0.2.0/25": mmdb.country("EU", "DE"),
            "192.0.2.128/25": mmdb.country("NA", "US"),
            "198.51.100.0/24": mmdb.country("SA", "BR"),
            "203.0.113.7/32": {"country": {"iso_code": "JP"}},
        },
    )
    geo = Geo(path)
    assert geo.zone("192.0.2.127") == "europe/de"
    assert geo.zone("192.0.2.128") == "america/us"
    assert geo.zone("198.51.100.9") == "america/br"
    assert geo.zone("203.0.113.7") == "jp"
    assert geo.zone("203.0.113.8") == geo.zone("2001:db8::1") == geo.zone("mx.example") == ""
    geo.close()


def test_a_database_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.mmdb").write_bytes(b"not a database")
    for name in ("bad.mmdb", "missing.mmdb"):
        with pytest.raises(GeoUnreadable, match=name):
            Geo(tmp_path / name)


@pytest.mark.parametrize(
    ("zone", "rule", "source"),
    [
        ("europe/de", "germans", "eu-1"),
        ("europe/fr", "rest", "eu-1"),  # by preference of europe
        ("america/us", "americans", "us-1"),
        ("america/ca", "americans", "us-1"),
    ],
)
def test_a_rule_names_country_or_continent(policy, zone, rule, source) -> None:
    c = context(policy, zones={"d.example": zone})
    decision, _ = route(job(bucket="bulk", recipient="a@d.example", lane="~00"), c, FRESH)
    assert isinstance(decision, Routed)
    assert (decision.orders.rule, decision.source) == (rule, source)


def test_while_a_zone_is_found_out_jobs_wait_only_where_it_decides(policy) -> None:
    c = context(policy, unplaced=frozenset({"d.example"}))
    decision, _ = route(job(bucket="bulk", recipient="a@d.example", lane="~00"), c, FRESH)
    assert isinstance(decision, Held)
    assert decision.rule == "germans"
    assert NOW < decision.until < NOW + 5
    assert "geo zone" in decision.reason
    # a rule without zone stands before every rule that asks for one: nothing to wait for
    first = load(
        POLICY.replace("match: {geo: de}", "match: {tag: x, geo: de}").encode(), file="p.yaml"
    ).policy
    c = context(first, unplaced=frozenset({"d.example"}))
    shop = job(bucket="bulk", recipient="a@d.example", lane="~00", tags=("shop",))
    decision, _ = route(shop, c, FRESH)
    assert isinstance(decision, Routed)
    assert decision.orders.rule == "shop"


def test_residency_waits_rather_than_leaves_its_regions(policy) -> None:
    from mailweir.contracts.snapshot import FastPath

    c = context(
        policy,
        fast_paths={"eu-1|us.example": FastPath(breaker="open", open_until=NOW + 60)},
        zones={"us.example": "america/us"},
    )
    kept = job(bucket="bulk", recipient="a@us.example", lane="~00", residency="eu-only")
    decision, _ = route(kept, c, FRESH)
    assert isinstance(decision, Held)
    assert "region" in decision.reason  # the rule's region and the residency have no common one
