"""Providers by MX and by domain."""

import pytest

from mailweir.mail import providers


@pytest.mark.parametrize(
    ("hosts", "domain", "want"),
    [
        (["gmail-smtp-in.l.google.com."], "gmail.com", "gmail"),
        (["ASPMX.L.GOOGLE.COM"], "example.org", "gmail"),
        (["aspmx2.googlemail.com"], "example.org", "gmail"),
        (["mta5.am0.yahoodns.net"], "aol.com", "yahoo"),
        (["mx3.mail.yahoo.co.jp"], "yahoo.co.jp", "yahoo_jp"),
        (["outlook-com.olc.protection.outlook.com"], "outlook.com", "outlook"),
        (["example-org.mail.protection.outlook.com"], "example.org", "m365"),
        (["example-org.n-v1.mx.microsoft"], "example.org", "m365"),
        (["evilgoogle.com"], "evil.org", "evilgoogle.com"),
        (["mx1.hoster.co.uk", "mx2.hoster.co.uk"], "shop.example", "hoster.co.uk"),
        ([], "gmail.com", "gmail"),
        ([], "mail.firma.de", "firma.de"),
        (["localhost"], "x.example", "localhost"),
    ],
)
def test_provider_of_mx(hosts, domain, want):
    assert providers.provider_of_mx(hosts, domain) == want


@pytest.mark.parametrize(
    ("domain", "want"),
    [
        ("Yahoo.CO.UK", "yahoo"),
        ("yahoo.de", "yahoo"),
        ("yahoo.co.jp", "yahoo_jp"),
        ("yahoo.evil.com", None),
        ("notyahoo.de", None),
        ("hotmail.fr", "outlook"),
        ("nyc.rr.com", "cox_charter"),
        ("example.com", None),
        ("gmail.com.", "gmail"),
    ],
)
def test_provider_of_domain(domain, want):
    assert providers.provider_of_domain(domain) == want


def test_lanes_are_few_and_stable():
    lanes = {providers.lane_of(f"d{i}.example") for i in range(2000)}
    assert len(lanes) == providers.LANES
    assert all(len(lane) == 3 and lane[0] == "~" for lane in lanes)
    assert providers.lane_of("GMAIL.com") == "gmail"
    assert providers.lane_of("d1.example") == providers.lane_of("D1.EXAMPLE.")


def test_site_is_the_set_not_the_order():
    assert providers.site_of(["b.x.", "a.x"]) == providers.site_of(["A.x", "b.x"])
    assert providers.site_of(["a.x"]) == "a.x"
    assert providers.site_of(["a.x", "b.x"]) != providers.site_of(["a.x", "c.x"])


def test_limits_are_cautious():
    for name, limits in providers.default_providers().items():
        assert limits.name == name
        assert 1 <= limits.connections <= 10
        assert limits.cold_rate.rate < limits.rate.rate
    assert providers.default_providers()["gmail"].tls == "required"


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("microsoft365", "m365"),
        ("web.de", "united"),
        ("Outlook.com", "outlook"),
        ("aol", "yahoo"),
        ("mail.ru", "mailru"),
        ("postfix", None),
        (None, None),
    ],
)
def test_names_people_use(name, want):
    assert providers.known_provider(name) == want
