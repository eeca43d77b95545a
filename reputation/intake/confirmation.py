"""Confirms an SNS subscription: one GET of SNS's own URL, for a signed message of an allowed topic.

The URL comes from outside. So it is fetched only from SNS's hosts over HTTPS, without redirects, and nothing of
the answer is kept but whether it names a subscription.
"""

from __future__ import annotations

import re

import httpx

from reputation.intake.providers.base import Refused
from reputation.intake.providers.sns import SUBSCRIBE_URL

TIMEOUT = 5.0  # real seconds; SNS asks again three times, then an hour later

BY_HAND = (
    "the subscription waits: set feedback.sns_confirm (MAILWEIR_FEEDBACK__SNS_CONFIRM=true) and choose "
    "'Request confirmation' for it in the SNS console, or run "
    "'aws sns confirm-subscription --topic-arn TOPIC --token TOKEN' with the Token SNS posted"
)


class ConfirmationUnavailable(Exception):
    """SNS could not be asked, or did not confirm; it will ask again (HTTP 503)."""


class Confirmation:
    """Fetches SubscribeURLs. ``allowed`` is SNS's own form of them."""

    def __init__(
        self, client: httpx.Client | None = None, allowed: re.Pattern[str] = SUBSCRIBE_URL
    ) -> None:
        self._client = client or httpx.Client(follow_redirects=False, timeout=TIMEOUT)
        self._allowed = allowed

    def __call__(self, url: str) -> None:
        """Confirm. Raises ``Refused`` for another's URL, :class:`ConfirmationUnavailable`."""
        if not self._allowed.fullmatch(url):
            raise Refused("the SubscribeURL is not SNS's own")
        try:
            answer = self._client.get(url)
        except httpx.HTTPError as error:
            raise ConfirmationUnavailable(type(error).__name__) from error
        if answer.status_code != 200 or b"SubscriptionArn" not in answer.content[:65536]:
            raise ConfirmationUnavailable(f"SNS answered {answer.status_code}")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
