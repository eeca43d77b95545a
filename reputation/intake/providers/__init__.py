"""Webhooks of relays, one small file each: verify, then a table from their words to ours."""

from __future__ import annotations

from importlib import import_module

from reputation.intake.providers.base import Webhook

NAMES = ("ses", "sendgrid", "mailgun", "postmark", "sparkpost", "mailjet", "brevo", "resend")
ALIASES = {
    "sns": "ses",
    "amazon": "ses",
    "amazon_ses": "ses",
    "aws": "ses",
    "sendinblue": "brevo",
    "twilio": "sendgrid",
}


class UnknownProvider(ValueError):
    """No relay of this name sends webhooks we know."""


def webhook(name: str) -> Webhook:
    """A relay's webhooks by name. Raises :class:`UnknownProvider`."""
    key = name.strip().lower().replace("-", "_")
    key = ALIASES.get(key, key)
    if key not in NAMES:
        raise UnknownProvider(f"no webhooks of {name!r} are known; known: {', '.join(NAMES)}")
    found: Webhook = import_module(f"reputation.intake.providers.{key}").WEBHOOK
    return found
