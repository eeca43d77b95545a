"""Addresses against the bad-input corpus (A1-A28) and against email-validator."""

from __future__ import annotations

import string

import pytest
from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mailweir.mail.address import (
    InvalidAddress,
    canonical,
    mixed_script,
    parse,
    parse_mailbox,
    split_mailboxes,
)

REFUSED = {
    "A1": "",
    "A2": "@x.com",
    "A3": "a@",
    "A4": "a b@x.com",
    "A5": "a@x..com",
    "A6": ".a@x.com",
    "A6b": "a.@x.com",
    "A6c": "a..b@x.com",
    "A7": "a@-x.com",
    "A7b": "a@x-.com",
    "A8 local": "a" * 65 + "@x.com",
    "A8 total": "a" * 60 + "@" + ".".join(["b" * 60] * 4) + ".com",
    "A9": "a@[127.0.0.1]",
    "A9b": "a@127.0.0.1",
    "A10": "a@localhost",
    "A11": "a@x.com\r\nBcc: e@v.il",
    "A11b": "a@x.com\n",
    "A12": "a@x.com>\r\nRCPT TO:<e@v.il>",
    "A12b": "a@x.com> SIZE=1",
    "A13": "a\0@x.com",
    "A14": '"e@v.il> ORCPT=x"@ok.com',
    "A15": '"e@v.il x"@ok.com',
    "A15b": '"quoted"@ok.com',
    "A16": "user@good.com(x)evil.com",
    "A17": "alice@ok.org)bob@evil.com",
    "A18": "<a@b.c>d@e.f",
    "A19": "@relay,@b:u@c.d",
    "A21": "=?utf-8?q?a=40evil.com?=@ok.com",
    "A22": "a@x.com,b@y.com",
    "A22b": "a@x.com;b@y.com",
    "A23": "ü@x.com",
    "A26 full-width at": "a＠x.com",
    "A26 zero width": "a\u200b@x.com",
    "A26 zero width in domain": "a@x\u200b.com",
    "A26 override": "a@x\u202e.com",
    "A26 BOM": "\ufeffa@x.com",
    "A26 soft hyphen": "a@x\u00ad.com",
    "full-width domain": "a@ｘ.com",
    "other dot": "a@x。com",
    "bad A-label": "a@xn--a.com",
    "two trailing dots": "a@x.com..",
    "underscore": "a@x_y.com",
    "surrogate": "a\ud800@x.com",
    "space around": " a@x.com",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_refused(text: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        parse(text)
    assert caught.value.why
    assert not text or len(text) < 4 or text not in caught.value.why  # no address in an error


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("u%evil.com@ok.com", "u%evil.com@ok.com"),  # A20: a literal local part of ok.com
        ("a@exämple.com", "a@xn--exmple-cua.com"),  # A24
        ("a@EXÄMPLE.com", "a@xn--exmple-cua.com"),
        ("a@exa\u0308mple.com", "a@xn--exmple-cua.com"),  # NFC
        ("a@xn--exmple-cua.com", "a@xn--exmple-cua.com"),
        ("A.b+c@X.COM", "A.b+c@x.com"),
        ("a@x.com.", "a@x.com"),  # A28
        ("a" * 64 + "@x.com", "a" * 64 + "@x.com"),
    ],
)
def test_accepted(text: str, wire: str) -> None:
    assert parse(text).text == wire


def test_one_key_for_one_mailbox() -> None:  # A24, A27, A28
    same = ["User@Exämple.com", "USER@EXÄMPLE.COM.", "user@xn--exmple-cua.com"]
    assert {canonical(text) for text in same} == {"user@xn--exmple-cua.com"}
    assert canonical("a+b@x.com") != canonical("a@x.com")


def test_mixed_script_is_accepted_and_told() -> None:  # A25
    address = parse("a@eхample.com")  # the х is Cyrillic
    assert address.domain.startswith("xn--")
    assert mixed_script(address.domain)
    assert not mixed_script(parse("a@exämple.com").domain)
    assert not mixed_script(parse("a@пример.com").domain)


_LOCALS = st.text(
    string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~. @\"(),:;<>[\\]", max_size=70
)
_DOMAINS = st.text(string.ascii_lowercase + "012-._äößхж ", max_size=40)


@settings(max_examples=1500)
@given(_LOCALS, _DOMAINS)
@example("a", "3com.com")
@example("a", "a--b.com")
@example("a", "ab--c.com")
@example("a", "x.123")
@example("a", "faß.de")
@example("0", "0.local")
def test_never_laxer_than_email_validator(local: str, domain: str) -> None:
    text = f"{local}@{domain}"
    try:
        ours = parse(text)
    except InvalidAddress:
        return
    # whether a domain may be mailed is the DNS' answer, and a house's own ``.local`` may
    last = ours.domain.rpartition(".")[2]
    assume(last not in SPECIAL_USE_DOMAIN_NAMES and ours.domain not in SPECIAL_USE_DOMAIN_NAMES)
    theirs = validate_email(
        text.removesuffix("."),
        check_deliverability=False,
        test_environment=True,
        allow_smtputf8=False,
        globally_deliverable=False,
    )
    assert theirs.ascii_email is not None
    assert ours.text.lower() == theirs.ascii_email.lower()
    assert parse(ours.text) == ours


@settings(max_examples=500)
@given(
    st.from_regex(r"[a-z0-9]+([.+-][a-z0-9]+){0,3}", fullmatch=True),
    st.from_regex(
        r"[a-z0-9]([a-z0-9]{0,10}[a-z0-9])?(\.[a-zäö][a-z0-9äö]{1,8}){1,3}", fullmatch=True
    ),
)
def test_takes_every_plain_address_email_validator_takes(local: str, domain: str) -> None:
    assume(
        len(local) <= 64
    )  # RFC 5321 4.5.3.1.1; the validator asks for it only when told to be strict
    text = f"{local}@{domain}"
    try:
        validate_email(text, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        return
    parse(text)


def test_mailboxes() -> None:
    assert parse_mailbox("Acme <hi@acme.test>").name == "Acme"
    assert parse_mailbox('"Acme, \\"Inc\\"" <hi@acme.test>').name == 'Acme, "Inc"'
    for bad in ("Acme, Inc <hi@acme.test>", "a@b.cd> <x@y.zz", "X <a@b.cd", '"A <a@b.cd>'):
        with pytest.raises(InvalidAddress):
            parse_mailbox(bad)


def test_header_members_are_cut_at_their_commas() -> None:
    assert split_mailboxes('"a, b" <a@x.yz>, c@x.yz (a, comment), d@x.yz') == [
        '"a, b" <a@x.yz>',
        "c@x.yz",
        "d@x.yz",
    ]
    assert split_mailboxes("undisclosed-recipients:;") == []
    with pytest.raises(InvalidAddress):
        parse(split_mailboxes("user@good.com(x)evil.com")[0])
    with pytest.raises(InvalidAddress):
        split_mailboxes('"open')
