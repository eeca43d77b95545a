"""Webhooks: every relay's documented payloads, true and forged signatures, hostile bodies."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
from pathlib import Path
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from mailweir.contracts.events import BounceClass, EventType
from reputation.intake.providers import NAMES, UnknownProvider
from reputation.intake.providers.base import CLAMPED, BadPayload, Refused
from reputation.intake.providers.sns import CERTIFICATE_URL, signed_text
from reputation.intake.webhook import MAX_BODY, TooLarge, handle, load_json, parse_headers

DATA = Path(__file__).parents[2] / "data" / "webhooks"
NOW = 1_790_000_000.0
CASES = [
    (path.stem, case)
    for path in sorted(DATA.glob("*.json"))
    for case in json.loads(path.read_text())["cases"]
]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{n}-{c['name']}" for n, c in CASES])
def test_documented_payload(name, case):
    body = json.dumps(case["body"]).encode()
    taken = handle(name, case.get("headers", {}), body, secret=None, now=case.get("now", NOW))
    assert taken.verified is None
    assert not taken.problems
    got = [
        {
            "type": e.type,
            "recipient": e.recipient,
            "category": e.category,
            "class": e.cls,
            "suppress": None if e.suppress is None else e.suppress.scope,
        }
        for e in taken.events
    ]
    assert got == [{"category": None, "class": "none", "suppress": None, **w} for w in case["want"]]
    again = handle(name, case.get("headers", {}), body, secret=None, now=case.get("now", NOW) + 60)
    assert [e.event_id for e in again.events] == [e.event_id for e in taken.events]


def test_every_relay_has_cases():
    assert {name for name, _ in CASES} == set(NAMES)


# --- signatures --------------------------------------------------------------------------------
SENDGRID = json.dumps(
    [{"event": "delivered", "email": "a@example.org", "timestamp": int(NOW), "sg_event_id": "1"}]
).encode()


def sendgrid_call(body=SENDGRID, stamp=None, key=None):
    key = key or ec.generate_private_key(ec.SECP256R1())
    stamp = str(int(NOW)) if stamp is None else stamp
    signature = key.sign(stamp.encode() + body, ec.ECDSA(hashes.SHA256()))
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    headers = {
        "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(signature).decode(),
        "X-Twilio-Email-Event-Webhook-Timestamp": stamp,
    }
    return headers, base64.b64encode(public).decode()


def test_sendgrid_signature():
    headers, secret = sendgrid_call()
    assert handle("sendgrid", headers, SENDGRID, secret=secret, now=NOW).verified is True
    pem = f"-----BEGIN PUBLIC KEY-----\n{secret}\n-----END PUBLIC KEY-----"
    assert handle("sendgrid", headers, SENDGRID, secret=pem, now=NOW).verified is True
    with pytest.raises(Refused):
        handle("sendgrid", {}, SENDGRID, secret=secret, now=NOW)
    with pytest.raises(Refused):  # W3: the same JSON, written again
        handle(
            "sendgrid",
            headers,
            json.dumps(json.loads(SENDGRID), indent=1).encode(),
            secret=secret,
            now=NOW,
        )
    for off in (-601, 601):  # W4, W5
        with pytest.raises(Refused):
            handle("sendgrid", headers, SENDGRID, secret=secret, now=NOW + off)
    with pytest.raises(Refused):
        handle("sendgrid", sendgrid_call()[0], SENDGRID, secret=secret, now=NOW)
    other = sendgrid_call()[1]
    assert handle("sendgrid", headers, SENDGRID, secret=f"{other}\n{secret}", now=NOW).verified


def mailgun_body(key="key-1", token="t" * 50, stamp=None):
    stamp = str(int(NOW)) if stamp is None else stamp
    sign = hmac.new(key.encode(), (stamp + token).encode(), hashlib.sha256).hexdigest()
    return json.dumps(
        {
            "signature": {"timestamp": stamp, "token": token, "signature": sign},
            "event-data": {
                "event": "delivered",
                "timestamp": NOW,
                "id": "x",
                "recipient": "a@example.org",
            },
        }
    ).encode()


def test_mailgun_signature():
    taken = handle("mailgun", {}, mailgun_body(), secret="key-1", now=NOW)
    assert taken.once == "t" * 50
    assert handle("mailgun", {}, mailgun_body(), secret="key-2\nkey-1", now=NOW).verified
    for body, now in [
        (mailgun_body(key="wrong"), NOW),
        (mailgun_body(), NOW + 601),
        (mailgun_body(stamp="nan"), NOW),
        (b"{}", NOW),
        (b"[1]", NOW),
        (b"not json", NOW),
    ]:
        with pytest.raises(Refused):
            handle("mailgun", {}, body, secret="key-1", now=now)


RESEND = json.dumps(
    {
        "type": "email.complained",
        "created_at": "2026-09-21T13:33:00.000Z",
        "data": {"email_id": "e", "to": ["a@example.org"]},
    }
).encode()


def svix(body=RESEND, secret=b"s" * 24, stamp=None, extra=""):
    stamp = str(int(NOW)) if stamp is None else stamp
    sign = base64.b64encode(
        hmac.new(secret, f"msg_1.{stamp}.".encode() + body, hashlib.sha256).digest()
    ).decode()
    return {"svix-id": "msg_1", "svix-timestamp": stamp, "svix-signature": f"{extra}v1,{sign}"}


def test_resend_signature():
    secret = "whsec_" + base64.b64encode(b"s" * 24).decode()
    taken = handle("resend", svix(), RESEND, secret=secret, now=NOW)
    assert taken.once == "msg_1"
    assert taken.events[0].type is EventType.COMPLAINED
    # W7: two signatures, one valid
    assert handle("resend", svix(extra="v1,AAAA "), RESEND, secret=secret, now=NOW).verified
    for headers in ({}, svix(secret=b"x" * 24), svix(stamp=str(int(NOW) - 301)), svix(b"other")):
        with pytest.raises(Refused):
            handle("resend", headers, RESEND, secret=secret, now=NOW)


@pytest.mark.parametrize("name", ["postmark", "sparkpost", "mailjet", "brevo"])
def test_basic_and_bearer(name):
    basic = {"Authorization": "Basic " + base64.b64encode(b"user:pass").decode()}
    assert handle(name, basic, b"[]", secret="user:pass", now=NOW).verified
    assert handle(name, {"authorization": "Bearer tok"}, b"[]", secret="old\ntok", now=NOW).verified
    for headers in (
        {},
        {"authorization": "Bearer x"},
        {"authorization": "Basic !!"},
        {"authorization": "tok"},
    ):
        with pytest.raises(Refused):
            handle(name, headers, b"[]", secret="user:pass", now=NOW)
    with pytest.raises(Refused):
        handle(name, {"authorization": "Bearer "}, b"[]", secret="", now=NOW)


@pytest.fixture(scope="module")
def sns_key():
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    return key, certificate.public_bytes(serialization.Encoding.PEM)


def sns_body(key, version="2", **changes):
    message = {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:us-east-1:123456789012:ses",
        "Message": json.dumps(
            {
                "notificationType": "Complaint",
                "complaint": {
                    "complainedRecipients": [{"emailAddress": "a@example.org"}],
                    "timestamp": "2026-09-21T13:30:00.000Z",
                },
                "mail": {},
            }
        ),
        "Timestamp": datetime.datetime.fromtimestamp(NOW, datetime.UTC).strftime(
            "%Y-%m-%dT%H:%M:%S.000Z"
        ),
        "SignatureVersion": version,
        "SigningCertURL": "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0a1b.pem",
        **changes,
    }
    digest = hashes.SHA1() if version == "1" else hashes.SHA256()
    message["Signature"] = base64.b64encode(
        key.sign(signed_text(message), padding.PKCS1v15(), digest)
    ).decode()
    return message


@pytest.mark.parametrize("version", ["1", "2"])
def test_sns_signature(sns_key, version):
    key, pem = sns_key
    asked = []

    def fetch(url):
        asked.append(url)
        return pem

    def call(message, **more):
        body = json.dumps(message).encode()
        headers = {"content-type": "text/plain; charset=UTF-8", **more.pop("headers", {})}  # W10
        return handle(
            "ses",
            headers,
            body,
            secret="",
            now=more.pop("now", NOW),
            fetch_certificate=fetch,
            **more,
        )

    taken = call(
        sns_body(key, version), topics=frozenset({"arn:aws:sns:us-east-1:123456789012:ses"})
    )
    assert taken.once == "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324"
    assert taken.events[0].type is EventType.COMPLAINED
    assert asked == ["https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0a1b.pem"]
    changed = sns_body(key, version)
    changed["Message"] += " "
    with pytest.raises(Refused):
        call(changed)
    with pytest.raises(Refused):
        call(sns_body(key, version), topics=frozenset({"arn:aws:sns:us-east-1:1:other"}))
    with pytest.raises(Refused):
        call(sns_body(key, version), now=NOW + 3700)
    with pytest.raises(Refused):
        call(sns_body(key, version), headers={"x-amz-sns-message-type": "SubscriptionConfirmation"})
    with pytest.raises(Refused):
        call(sns_body(key, version, SignatureVersion="3"))


@pytest.mark.parametrize(
    "url",
    [
        "http://sns.us-east-1.amazonaws.com/SimpleNotificationService-0a.pem",
        "https://sns.us-east-1.amazonaws.com@evil.example/SimpleNotificationService-0a.pem",
        "https://sns.evil.com/SimpleNotificationService-0a.pem",
        "https://sns.us-east-1.amazonaws.com.evil.com/SimpleNotificationService-0a.pem",
        "https://sns.us-east-1.amazonaws.com:8443/SimpleNotificationService-0a.pem",
        "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0a.pem?x=1",
        "https://sns.us-east-1.amazonaws.com/x/SimpleNotificationService-0a.pem",
        "https://bucket.s3.amazonaws.com/SimpleNotificationService-0a.pem",
        "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0a.pem\n",
        "",
    ],
)
def test_sns_certificate_only_from_sns(sns_key, url):  # W8
    key, _ = sns_key
    body = json.dumps(sns_body(key, SigningCertURL=url)).encode()

    def fetch(_):
        raise AssertionError("fetched")

    with pytest.raises(Refused):
        handle("ses", {}, body, secret="", now=NOW, fetch_certificate=fetch)
    assert not CERTIFICATE_URL.fullmatch(url)
    assert CERTIFICATE_URL.fullmatch(
        "https://sns.cn-north-1.amazonaws.com.cn/SimpleNotificationService-0a.pem"
    )


def test_sns_subscription_is_never_fetched(sns_key):  # W9
    key, pem = sns_key
    message = sns_body(
        key,
        Type="SubscriptionConfirmation",
        Token="t",
        SubscribeURL="http://169.254.169.254/latest",
    )
    taken = handle("ses", {}, json.dumps(message).encode(), secret=pem.decode(), now=NOW)
    assert taken.events == []


# --- hostile bodies ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "body",
    [
        b'{"event":"delivered","event":"complaint"}',
        b'[{"timestamp": NaN}]',
        b'[{"timestamp": 1e999}]',
        b'[{"timestamp": -Infinity}]',
        b'["\\ud800"]',
        b"\xff\xfe",
        b"",
        b"{",
        b"[" * 100_000,
        b"[" * 45 + b"]" * 45,
        b'{"a":' * 60 + b"1" + b"}" * 60,
    ],
)
def test_bad_json(body):  # W12, W13
    with pytest.raises(BadPayload):
        handle("sendgrid", {}, body, secret=None, now=NOW)


def test_good_json_stays():
    assert load_json(b'{"a": ["\\ud83d\\ude00", 1.5, {"b": null}]}') == {
        "a": ["\U0001f600", 1.5, {"b": None}]
    }


def test_too_large():  # W11
    with pytest.raises(TooLarge):
        handle("sendgrid", {}, b" " * (MAX_BODY + 1), secret=None, now=NOW)


def test_one_bad_item_among_a_thousand():  # W14
    good = {"event": "delivered", "email": "a@example.org", "timestamp": NOW}
    items = [{**good, "sg_event_id": str(n)} for n in range(1000)]
    items[500] = {"event": "delivered", "email": None, "timestamp": NOW}
    taken = handle("sendgrid", {}, json.dumps(items).encode(), secret=None, now=NOW)
    assert len(taken.events) == 999
    assert len(taken.problems) == 1
    assert "500" in taken.problems[0]


@pytest.mark.parametrize(
    "item", [1, None, "x", [], {}, {"event": []}, {"event": {}, "email": "a@b.c"}]
)
def test_nonsense_items_are_reported(item):
    taken = handle("sendgrid", {}, json.dumps([item]).encode(), secret=None, now=NOW)
    assert taken.events == []
    assert len(taken.problems) == 1


@pytest.mark.parametrize(("at", "clamped"), [(0, True), (4_070_908_800, True), (NOW - 60, False)])
def test_impossible_times_are_clamped_and_flagged(at, clamped):  # W18
    body = json.dumps(
        [{"event": "open", "email": "a@example.org", "timestamp": at, "sg_event_id": "1"}]
    )
    event = handle("sendgrid", {}, body.encode(), secret=None, now=NOW).events[0]
    assert (CLAMPED in event.tags) is clamped
    assert NOW - 31 * 86400 < event.occurred_at <= NOW + 300


def test_a_soft_relay_verdict_never_becomes_hard():
    item = {
        "event": "bounce",
        "type": "blocked",
        "email": "a@example.org",
        "timestamp": NOW,
        "sg_event_id": "1",
        "reason": "550 5.1.1 user unknown",
    }
    event = handle("sendgrid", {}, json.dumps([item]).encode(), secret=None, now=NOW).events[0]
    assert event.cls is not BounceClass.HARD
    assert event.suppress is None


def test_unknown_provider_and_headers_file():
    with pytest.raises(UnknownProvider):
        handle("nobody", {}, b"{}", secret=None, now=NOW)
    assert parse_headers(b"POST / HTTP/1.1\r\nA-b: c:d\r\n") == {"a-b": "c:d"}
    assert parse_headers(b'{"A-b": ["c"], "D": "e"}') == {"a-b": "c", "d": "e"}


# --- forms and wrappers beside the usual ones ---------------------------------------------------
def test_mailgun_legacy_form_post():
    stamp, token = str(int(NOW)), "t" * 50
    signature = hmac.new(b"key", (stamp + token).encode(), hashlib.sha256).hexdigest()
    fields = {
        "event": "bounced",
        "recipient": "jo@example.net",
        "code": "550",
        "error": "5.1.1 The email account that you tried to reach does not exist",
        "timestamp": stamp,
        "token": token,
        "signature": signature,
    }
    body = urlencode(fields).encode()
    taken = handle("mailgun", {}, body, secret="key", now=NOW)
    assert taken.verified
    assert taken.once == token
    (event,) = taken.events
    assert (event.type, event.recipient) == (EventType.BOUNCED, "jo@example.net")
    assert (event.category, event.cls) == ("invalid_recipient", BounceClass.HARD)
    forged = urlencode({**fields, "signature": "0" * 64}).encode()
    with pytest.raises(Refused):
        handle("mailgun", {}, forged, secret="key", now=NOW)


def ses(event):
    mail = {
        "timestamp": "2026-09-21T10:00:00Z",
        "messageId": "m",
        "destination": ["jo@example.net"],
    }
    return {"mail": mail, **event}


@pytest.mark.parametrize(
    ("provider", "payload", "want"),
    [
        (
            "ses",
            ses(
                {
                    "eventType": "Subscription",
                    "subscription": {
                        "newTopicPreferences": {
                            "unsubscribeAll": False,
                            "topicSubscriptionStatus": [
                                {"topicName": "a", "subscriptionStatus": "OptIn"}
                            ],
                        }
                    },
                }
            ),
            [("subscribed", None)],
        ),
        (
            "ses",
            ses(
                {
                    "eventType": "Subscription",
                    "subscription": {"newTopicPreferences": {"unsubscribeAll": True}},
                }
            ),
            [("unsubscribed", "recipient")],
        ),
        (
            "ses",
            ses(
                {
                    "notificationType": "Complaint",
                    "complaint": {
                        "complainedRecipients": [{"emailAddress": "jo@example.net"}],
                        "complaintFeedbackType": "auth-failure",
                    },
                }
            ),
            [("unknown", None)],
        ),
        (
            "ses",
            {
                "detail-type": "Email Complaint Received",
                "detail": ses(
                    {
                        "eventType": "Complaint",
                        "complaint": {"complainedRecipients": [{"emailAddress": "jo@example.net"}]},
                    }
                ),
            },
            [("complained", "recipient")],
        ),
        ("sparkpost", [{"msys": {"relay_message": {"content": {}}}}, {"msys": {}}], []),
        (
            "brevo",
            {"event": "list_addition", "email": ["a@example.net", "b@example.net"], "ts": int(NOW)},
            [("subscribed", None), ("subscribed", None)],
        ),
        (
            "resend",
            {
                "type": "email.received",
                "created_at": "2026-09-21T10:00:00Z",
                "data": {"to": ["in@example.com"]},
            },
            [],
        ),
        (
            "resend",
            {"type": "domain.updated", "created_at": "2026-09-21T10:00:00Z", "data": {}},
            [],
        ),
    ],
)
def test_documented_odd_forms(provider, payload, want):
    taken = handle(provider, {}, json.dumps(payload).encode(), secret=None, now=NOW)
    assert not taken.problems
    got = [(e.type, e.suppress.scope if e.suppress else None) for e in taken.events]
    assert got == want


@pytest.mark.parametrize(
    ("provider", "body", "words"),
    [
        ("ses", {"notificationType": "Bounce", "bounce": [1], "mail": {}}, "bounce a list"),
        ("sendgrid", [[1, 2]], "a list, where an object was expected"),
        ("postmark", None, "null, where an object was expected"),
        ("resend", {"type": "email.complained", "data": []}, "data a list"),
        (
            "sparkpost",
            [{"msys": {"message_event": {"type": "delivery", "rcpt_to": 7}}}],
            "no recipient",
        ),
        ("mailjet", "bounce", "a text, where an object was expected"),
    ],
)
def test_what_is_of_another_shape_is_said_in_words_of_json(provider, body, words):
    taken = handle(provider, {}, json.dumps(body).encode(), secret=None, now=NOW)
    assert taken.events == []
    assert words in taken.problems[0]
    assert "Error" not in taken.problems[0]


@pytest.mark.parametrize("provider", ["ses", "resend"])
def test_two_events_without_an_id_are_two(provider):
    def named(address: str) -> str:
        body = {
            "ses": {
                "notificationType": "Complaint",
                "complaint": {"complainedRecipients": [{"emailAddress": address}]},
            },
            "resend": {"type": "email.complained", "data": {"to": [address]}},
        }[provider]
        taken = handle(provider, {}, json.dumps(body).encode(), secret=None, now=NOW)
        return taken.events[0].event_id

    assert named("a@example.net") == named("a@example.net") != named("b@example.net")
