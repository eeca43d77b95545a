"""Payloads that are not quite as documented: what can be read is kept, nobody is judged for another, and
what is absurd costs nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import pytest

from mailweir.contracts.events import BounceClass, EventType
from reputation.intake.providers.base import BadPayload, Refused
from reputation.intake.webhook import MAX_BODY, handle

NOW = 1_790_000_000.0
ISO = "2026-09-21T13:13:20Z"


def taken(provider, payload):
    return handle(provider, {}, json.dumps(payload).encode(), secret=None, now=NOW)


def ses_bounce(recipients, kind="Permanent", destination=("jo@example.net",)):
    return {
        "notificationType": "Bounce",
        "mail": {"timestamp": ISO, "messageId": "m1", "destination": list(destination)},
        "bounce": {
            "bounceType": kind,
            "bounceSubType": "General",
            "timestamp": ISO,
            "feedbackId": "f1",
            "bouncedRecipients": recipients,
        },
    }


def test_one_unreadable_recipient_leaves_the_others():
    rows = [{"emailAddress": "jo@example.net", "status": "5.1.1"}, {"emailAddress": None}, {}]
    found = taken("ses", ses_bounce(rows))
    assert [(e.recipient, e.cls) for e in found.events] == [("jo@example.net", BounceClass.HARD)]
    assert len(found.problems) == 1


@pytest.mark.parametrize(
    ("provider", "payload"),
    [
        ("ses", ses_bounce([], destination=["jo@example.net", "al@example.net"])),
        (
            "sendgrid",
            [{"event": "bounce", "email": "jo@example.net,al@example.net", "timestamp": NOW}],
        ),
        ("sendgrid", [{"event": "bounce", "email": "jo@example.net@example.org", "timestamp": 1}]),
        ("mailgun", {"event-data": {"event": "failed", "severity": "permanent", "id": "x"}}),
    ],
    ids=["ses-of-several", "two-addresses", "two-signs", "mailgun-nobody"],
)
def test_a_bounce_of_nobody_in_particular_judges_nobody(provider, payload):
    found = taken(provider, payload)
    assert found.events == []
    assert len(found.problems) == 1


def test_a_bounce_of_a_mail_to_several_is_of_none_of_them_for_certain():
    payload = {
        "type": "email.bounced",
        "created_at": ISO,
        "data": {
            "email_id": "e1",
            "to": ["jo@example.net", "al@example.net"],
            "bounce": {"type": "Permanent", "subType": "General", "message": "550 5.1.1 unknown"},
        },
    }
    found = taken("resend", payload)
    assert [e.recipient for e in found.events] == ["jo@example.net", "al@example.net"]
    assert all(e.suppress is None for e in found.events)
    payload["data"]["to"] = ["jo@example.net"]
    assert taken("resend", payload).events[0].suppress is not None


def sendgrid_time(at):
    event = {"event": "open", "email": "jo@example.net", "sg_event_id": "1"}
    body = json.dumps([event if at is None else {**event, "timestamp": at}])
    return handle("sendgrid", {}, body.encode(), secret=None, now=NOW).events[0]


def test_an_event_without_a_time_is_of_now():
    event = sendgrid_time(None)
    assert event.occurred_at == NOW
    assert event.tags == ("time-missing",)


def test_a_replayed_event_of_years_ago_keeps_its_time():
    event = sendgrid_time(1_471_788_000)  # 2016
    assert event.occurred_at == 1_471_788_000
    assert event.tags == ()


@pytest.mark.parametrize(
    "at",
    [int("9" * 400), "9" * 400, 1e308, -1e308, "0001-01-01T00:00:00+14:00"],
    ids=["integer", "text", "large", "small", "year-1"],
)
def test_numbers_out_of_all_reason(at):
    good = {"event": "open", "email": "jo@example.net", "timestamp": NOW, "sg_event_id": "1"}
    found = taken("sendgrid", [{**good, "timestamp": at}, good])
    assert found.events[-1].occurred_at == NOW
    assert all(NOW - 31 * 86400 <= e.occurred_at <= NOW + 300 for e in found.events)


@pytest.mark.parametrize(
    ("provider", "payload"),
    [
        ("ses", ses_bounce("x" * 900_000)),
        ("ses", ses_bounce([None] * 150_000)),
        ("ses", {"notificationType": "Delivery", "delivery": {"recipients": ["a@b.co"] * 90_000}}),
        ("resend", {"type": "email.bounced", "data": {"to": ["a@b.co"] * 90_000}}),
    ],
    ids=["text", "nulls", "deliveries", "resend"],
)
def test_more_recipients_than_any_mail_has(provider, payload):
    assert len(json.dumps(payload)) < MAX_BODY
    began = time.process_time()
    found = taken(provider, payload)
    assert time.process_time() - began < 0.3
    assert (found.events, len(found.problems)) == ([], 1)


@pytest.mark.parametrize(
    ("provider", "payload", "want", "reply"),
    [
        (
            "sendgrid",
            [{"event": "delivered", "email": "jo@example.net", "response": "250 2.0.0 OK 17"}],
            EventType.DELIVERED,
            "250 2.0.0 OK 17",
        ),
        (
            "sendgrid",
            [{"event": "dropped", "email": "jo@example.net", "reason": "Bounced Address"}],
            EventType.REJECTED,
            "Bounced Address",
        ),
        (
            "ses",
            {
                "eventType": "Rendering Failure",
                "mail": {"timestamp": ISO, "messageId": "m", "destination": ["jo@example.net"]},
                "failure": {"templateName": "t", "errorMessage": "Attribute 'x' is not present"},
            },
            EventType.FAILED,
            "Attribute 'x' is not present",
        ),
        (
            "ses",
            {
                "eventType": "Delivery",
                "mail": {"timestamp": ISO, "messageId": "m", "destination": ["jo@example.net"]},
                "delivery": {"recipients": ["jo@example.net"], "smtpResponse": "250 ok 17"},
            },
            EventType.DELIVERED,
            "250 ok 17",
        ),
    ],
    ids=["delivered", "dropped", "ses-rendering", "ses-delivery"],
)
def test_the_words_of_a_relay_are_kept(provider, payload, want, reply):
    (event,) = taken(provider, payload).events
    assert (event.type, event.reply) == (want, reply)


def test_sns_read_by_what_passed_it_on():
    wrapped = {"Type": "Notification", "MessageId": "1", "Message": ses_bounce(
        [{"emailAddress": "jo@example.net", "status": "5.1.1"}]
    )}  # fmt: skip
    assert taken("ses", wrapped).events[0].cls is BounceClass.HARD


def mailgun(account, parent):
    stamp, token = str(int(NOW)), "t" * 50

    def sign(key):
        return hmac.new(key, (stamp + token).encode(), hashlib.sha256).hexdigest()

    signature = {"timestamp": stamp, "token": token, "signature": sign(account)}
    event = {"event": "delivered", "timestamp": NOW, "id": "x", "recipient": "jo@example.net"}
    return json.dumps(
        {"signature": {**signature, "parent-signature": sign(parent)}, "event-data": event}
    ).encode()


def test_a_subaccounts_events_are_signed_by_its_parent_too():
    assert handle("mailgun", {}, mailgun(b"own", b"key"), secret="key", now=NOW).verified
    with pytest.raises(Refused):
        handle("mailgun", {}, mailgun(b"own", b"other"), secret="key", now=NOW)


def test_no_id_holds_what_a_database_refuses():
    item = {
        "event": "open",
        "email": "jo@example.net",
        "sg_event_id": "\0",
        "smtp-id": "<\0@ex.com>",
    }
    (event,) = taken("sendgrid", [item]).events
    assert "\0" not in event.event_id
    assert event.message_ids == ()


def test_headers_that_are_no_text_are_refused():
    secret = "whsec_" + base64.b64encode(b"s" * 24).decode()
    stamp = str(int(NOW))
    headers = {"svix-id": "\udc80", "svix-timestamp": stamp, "svix-signature": "v1,AAAA"}
    with pytest.raises(Refused):
        handle("resend", headers, b"{}", secret=secret, now=NOW)


def test_a_number_of_a_million_digits_is_no_json():
    with pytest.raises(BadPayload):
        handle("sendgrid", {}, b'[{"timestamp":' + b"9" * 900_000 + b"}]", secret=None, now=NOW)


OUT, BOUNCED = EventType.REJECTED, EventType.BOUNCED
GONE = (EventType.UNSUBSCRIBED, "jo@example.net", False)


@pytest.mark.parametrize(
    ("provider", "payload", "want"),
    [
        ("postmark", {"RecordType": "Inbound", "From": "jo@example.net", "To": "in@ex.com"}, []),
        ("sendgrid", [{"event": "account_status_change", "type": "compliance_suspend"}], []),
        ("mailjet", {"event": "unsub", "email": "jo@example.net"}, [GONE]),
        ("brevo", {"event": "contact_updated", "email": "jo@example.net", "id": 1}, []),
        ("brevo", {"event": "inboundEmailProcessed", "items": []}, []),
        ("mailgun", {"event-data": {"event": "stored", "id": "x", "timestamp": NOW}}, []),
        (
            "mailgun",
            {
                "event-data": {
                    "event": "rejected",
                    "id": "x",
                    "timestamp": NOW,
                    "reject": {"reason": "Sandbox subdomains are for test purposes only."},
                    "message": {"headers": {"to": "Jo <jo@example.net>", "message-id": "m@ex.com"}},
                }
            },
            [(OUT, "jo@example.net", False)],
        ),
        (
            "mailjet",
            [
                {
                    "event": "bounce",
                    "time": int(NOW),
                    "email": "jo@example.net",
                    "MessageID": 1,
                    "hard_bounce": "false",
                    "blocked": "false",
                    "error": "mailbox full",
                }
            ],
            [(BOUNCED, "jo@example.net", False)],
        ),
        (
            "sparkpost",
            [{"msys": {"message_event": {"type": "bounce", "rcpt_to": "jo@example.net"}}}],
            [(BOUNCED, "jo@example.net", False)],
        ),
        (
            "resend",
            {"type": "email.sent", "data": {"to": "jo@example.net"}},
            [(EventType.SENT, "jo@example.net", False)],
        ),
    ],
    ids=[
        "postmark-inbound",
        "sendgrid-account",
        "mailjet-timeless",
        "brevo-contact",
        "brevo-inbound",
        "mailgun-stored",
        "mailgun-rejected",
        "mailjet-text",
        "sparkpost-bare",
        "resend-bare",
    ],
)
def test_the_rarer_events(provider, payload, want):
    found = taken(provider, payload)
    assert not found.problems
    assert [(e.type, e.recipient, e.cls is BounceClass.HARD) for e in found.events] == want
