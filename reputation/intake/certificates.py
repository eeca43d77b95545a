"""SNS signing certificates over HTTPS: from SNS's own hosts, without redirects, kept for a day."""

from __future__ import annotations

import threading
import time

import httpx

from reputation.intake.providers.base import Refused
from reputation.intake.providers.sns import CERTIFICATE_URL

MAX_BYTES = 64 * 1024
KEPT = 86400.0  # real seconds
_MANY = 32


class CertificateUnavailable(Exception):
    """SNS's certificate could not be fetched now; the call may be repeated (HTTP 503)."""


class Certificates:
    """A small cache. Safe to share between threads."""

    def __init__(self, client: httpx.Client | None = None) -> None:
        self._client = client or httpx.Client(follow_redirects=False, timeout=5.0)
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, bytes]] = {}

    def __call__(self, url: str) -> bytes:
        """The PEM behind a URL. Raises ``Refused`` for another's host, :class:`CertificateUnavailable`."""
        if not CERTIFICATE_URL.fullmatch(url):
            raise Refused("the certificate's URL is not SNS's own")
        with self._lock:
            kept = self._kept.get(url)
        if kept is not None and time.monotonic() - kept[0] < KEPT:
            return kept[1]
        try:
            answer = self._client.get(url)
        except httpx.HTTPError as error:
            raise CertificateUnavailable(type(error).__name__) from error
        if answer.status_code != 200 or len(answer.content) > MAX_BYTES:
            raise CertificateUnavailable(f"SNS answered {answer.status_code}")
        with self._lock:
            if len(self._kept) >= _MANY:
                self._kept.clear()
            self._kept[url] = (time.monotonic(), answer.content)
        return answer.content

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
