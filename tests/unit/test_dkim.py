"""Our signatures, verified by dkimpy: an implementation that shares nothing with ours."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable

import dkim as oracle
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from mailweir.contracts.policy import DkimKey, SendingDomain
from mailweir.plumbing.secrets import Secrets
from mailweir.plumbing.settings import Settings
from workers.delivery.dkim import BadKey, Key, Keyring, Signer, load_key, relaxed_body, sign_all

RSA = generate_private_key(public_exponent=65537, key_size=2048)
ED = Ed25519PrivateKey.generate()
HEAD = (
    b"From: Acme <news@acme.test>\r\nTo: j@example.test\r\nSubject: a\t b  c\r\n folded\r\n"
    b"Date: Mon, 2 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@acme.test>\r\n"
)
BODY = b"Hello\r\n.dots\r\n  two   spaces\tand a tab \t \r\n\r\n\r\n"


def pem(key: Key) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def record(key: Key) -> bytes:
    public = key.public_key()
    if isinstance(key, Ed25519PrivateKey):
        raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return b"v=DKIM1; k=ed25519; p=" + base64.b64encode(raw)
    raw = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return b"v=DKIM1; k=rsa; p=" + base64.b64encode(raw)


SIGNERS = (Signer("acme.test", "r1", RSA), Signer("acme.test", "e1", ED))
RECORDS = {"r1._domainkey.acme.test.": record(RSA), "e1._domainkey.acme.test.": record(ED)}


def dns(name: bytes, timeout: int = 5) -> bytes | None:
    return RECORDS.get(name.decode())


def verified(data: bytes, count: int = 2) -> list[bool]:
    return [oracle.DKIM(data).verify(idx=i, dnsfunc=dns) for i in range(count)]


def test_both_signatures_verify_in_dkimpy() -> None:
    assert verified(sign_all(HEAD + b"\r\n" + BODY, SIGNERS, 1_700_000_000)) == [True, True]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.replace(b"Hello", b"Hallo"),
        lambda m: m.replace(b"news@acme.test", b"nows@acme.test"),
        lambda m: m.replace(b"Date:", b"Subject: second\r\nDate:"),
        lambda m: m.replace(b"Date:", b"From: evil@v.il\r\nDate:"),
        lambda m: m.replace(b"Date:", b"Reply-To: evil@v.il\r\nDate:"),
    ],
    ids=["body", "from", "second subject", "second from", "added reply-to"],
)
def test_a_change_on_the_way_breaks_them(change: Callable[[bytes], bytes]) -> None:
    signed = sign_all(HEAD + b"\r\n" + BODY, SIGNERS, 1_700_000_000)
    changed = change(signed)
    assert changed != signed
    for index in (0, 1):
        with contextlib.suppress(oracle.ValidationError):  # a second From: refused outright
            assert not oracle.DKIM(changed).verify(idx=index, dnsfunc=dns)


def test_blank_changes_a_relay_makes_do_not() -> None:
    signed = sign_all(HEAD + b"\r\n" + BODY, SIGNERS, 1_700_000_000)
    assert verified(signed.replace(b"  two   spaces", b" two spaces")) == [True, True]


LINE = st.text(alphabet=" \tab.=\x80ü", max_size=12)


@settings(max_examples=150)
@given(st.lists(LINE, max_size=12), LINE)
def test_any_body_verifies(lines: list[str], subject: str) -> None:
    body = "".join(line + "\r\n" for line in lines).encode()
    head = HEAD + b"X-Other: " + subject.encode("ascii", "replace") + b"\r\n"
    assert oracle.DKIM(sign_all(head + b"\r\n" + body, SIGNERS[1:], 1)).verify(dnsfunc=dns)


@settings(max_examples=300)
@given(st.lists(LINE, max_size=12))
def test_canonical_body_is_the_oracles(lines: list[str]) -> None:
    body = "".join(line + "\r\n" for line in lines).encode()
    assert relaxed_body(body) == oracle.canonicalization.Relaxed.canonicalize_body(body)


def test_the_same_job_gets_the_same_bytes() -> None:
    data = HEAD + b"\r\n" + BODY
    assert sign_all(data, SIGNERS, 5) == sign_all(data, SIGNERS, 5)


def test_lines_stay_short_and_the_key_stays_out_of_sight() -> None:
    signed = sign_all(HEAD + b"\r\n" + BODY, SIGNERS, 1)
    assert max(len(line) for line in signed.split(b"\r\n")) <= 78
    assert repr(SIGNERS[0]) == "Signer(r1._domainkey.acme.test, rsa-sha256)"


def test_keys_come_by_reference_and_rotate(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DKIM_A", pem(RSA))
    ring = Keyring(Secrets(Settings.model_validate({})))
    domain = SendingDomain("acme.test", dkim=(DkimKey("r1", "env:DKIM_A"),))
    data = HEAD + b"\r\n" + BODY
    assert verified(sign_all(data, ring.for_domain(domain), 1), 1) == [True]
    monkeypatch.setenv("DKIM_A", pem(ED))
    rotated = sign_all(data, ring.for_domain(domain), 1)
    assert b"a=ed25519-sha256" in rotated


def test_a_bad_key_is_named_by_reference_only() -> None:
    for text in ("no key at all", pem(RSA)[:200], ""):
        with pytest.raises(BadKey) as error:
            load_key(text, "env:DKIM_A")
        assert "env:DKIM_A" in str(error.value)
        assert text[:20] not in str(error.value) or not text


def test_signing_10_kib_costs_less_than_dkimpy_by_far() -> None:
    body = (b"<p>Hello there, this is a line of a newsletter.</p>  \r\n" * 190)[:10240] + b"\r\n"
    data = HEAD + b"\r\n" + body

    def best(work: Callable[[], object], rounds: int) -> float:
        times = []
        for _ in range(rounds):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    ours = best(lambda: sign_all(data, SIGNERS[:1], 1), 30)
    raw = best(lambda: SIGNERS[0].sign(b"From: a@b.c\r\n\r\n", 1), 30)
    # the signature itself is OpenSSL's; what we add must stay a small part of it on any machine
    assert ours < 1.6 * raw, f"{ours * 1e6:.0f} us against {raw * 1e6:.0f} us"
