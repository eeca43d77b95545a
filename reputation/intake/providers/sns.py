"""Amazon SNS messages: their signature (docs.aws.amazon.com/sns,
"Verifying the signatures of Amazon SNS messages").

The certificate is fetched only from SNS's own hosts, by a function the caller gives, without redirects; so is
``SubscribeURL``, of a signed message for a topic on the allow-list, where the settings say so
(``reputation.intake.confirmation``).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from datetime import datetime
from typing import Any

from reputation.intake.providers.base import Call, Refused

CERTIFICATE_URL = re.compile(
    r"https://sns\.[a-z0-9-]{3,}\.amazonaws\.com(?:\.cn)?/SimpleNotificationService-[0-9a-f]+\.pem"
)
SUBSCRIBE_URL = re.compile(
    r"https://sns\.[a-z0-9-]{3,}\.amazonaws\.com(?:\.cn)?/\?[A-Za-z0-9&=%:._~+-]{1,2000}"
)
"""SNS's ConfirmSubscription: its host, no port, no user, no path, no fragment."""

OLDEST = 3600.0
"""Seconds after which a message is a replay; SNS itself retries for about 23 days, but says so anew."""

_NOTIFICATION = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
_CONFIRMATION = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")


def signed_text(message: dict[str, Any]) -> bytes:
    """What SNS signs: the named fields in order, each name and value on its own line."""
    names = _NOTIFICATION if message.get("Type") == "Notification" else _CONFIRMATION
    return "".join(f"{n}\n{message[n]}\n" for n in names if message.get(n) is not None).encode()


def subscription(payload: Any) -> str | None:
    """The URL that confirms a subscription; None for any other message."""
    if not isinstance(payload, dict) or payload.get("Type") != "SubscriptionConfirmation":
        return None
    return str(payload.get("SubscribeURL") or "")[:2200]


def verify(call: Call) -> str:
    """Raises ``Refused`` unless SNS signed the message for an allowed topic; returns its MessageId."""
    try:
        message = json.loads(call.body)
        ident, topic = str(message["MessageId"]), str(message["TopicArn"])
        kind, stamp = str(message["Type"]), str(message["Timestamp"])
        signature = base64.b64decode(message["Signature"], validate=True)
        signed = signed_text(message)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise Refused("not a signed SNS message") from None
    for name, value in (("type", kind), ("id", ident), ("topic-arn", topic)):
        header = call.header(f"x-amz-sns-{'message-' if name != 'topic-arn' else ''}{name}")
        if header and header != value:
            raise Refused(f"the SNS header for {name} differs from the body")
    if call.topics and topic not in call.topics:
        raise Refused("the topic is not on the allow-list")
    try:
        age = call.now - datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
    except ValueError:
        raise Refused("the message has no time") from None
    if not -300.0 <= age <= OLDEST:
        raise Refused("the message is older than an hour or from the future")
    _check(message, signed, signature, _certificate(message, call))
    return ident[:100]


def _certificate(message: dict[str, Any], call: Call) -> bytes:
    for secret in call.secrets:
        if "BEGIN CERTIFICATE" in secret:
            return secret.encode()
    url = str(message.get("SigningCertURL") or message.get("SigningCertUrl") or "")
    if not CERTIFICATE_URL.fullmatch(url):
        raise Refused("the certificate's URL is not SNS's own")
    if call.fetch_certificate is None:
        raise Refused("no certificate to check the signature with")
    return call.fetch_certificate(url)


def _check(message: dict[str, Any], signed: bytes, signature: bytes, pem: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    from cryptography.x509 import load_pem_x509_certificate

    version = str(message.get("SignatureVersion"))
    if version not in ("1", "2"):
        raise Refused("unknown SignatureVersion")
    # version 1 is SHA-1 by SNS's specification: still the default of its topics
    algorithm = hashes.SHA1() if version == "1" else hashes.SHA256()  # noqa: S303
    try:
        key = load_pem_x509_certificate(pem).public_key()
    except ValueError:
        raise Refused("the certificate cannot be read") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise Refused("the certificate holds no RSA key")
    try:
        key.verify(signature, signed, padding.PKCS1v15(), algorithm)
    except InvalidSignature:
        raise Refused("the signature does not fit") from None
