"""Who is at the console: one password per installation, a signed cookie, CSRF tokens, slow guessing.

The cookie is ``expiry.nonce.mac`` under the installation's key: HttpOnly, SameSite=Strict, eight hours. No
state on the server, so any web process reads it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import deque

COOKIE = "mailweir_session"
LIFETIME = 8 * 3600  # real seconds
TRIES, PER = 10, 300.0  # wrong passwords in so many real seconds, all visitors together


class Sessions:
    """Checks passwords and cookies."""

    def __init__(self, key: bytes, password: str) -> None:
        self._key = key
        self._password = password
        self._wrong: deque[float] = deque()

    def locked(self) -> bool:
        """Too many wrong passwords lately."""
        now = time.monotonic()
        while self._wrong and self._wrong[0] < now - PER:
            self._wrong.popleft()
        return len(self._wrong) >= TRIES

    def check_password(self, given: str) -> bool:
        """Whether the password is right; a wrong one is remembered."""
        right = hmac.compare_digest(given.encode(), self._password.encode())
        if not right:
            self._wrong.append(time.monotonic())
        return right

    def new(self) -> str:
        """A cookie's value."""
        body = f"{int(time.time()) + LIFETIME}.{secrets.token_hex(8)}"
        return f"{body}.{self._mac('session', body)}"

    def valid(self, cookie: str | None) -> bool:
        """Whether a cookie is ours and not expired."""
        if not cookie or cookie.count(".") != 2:
            return False
        body, _, mac = cookie.rpartition(".")
        expiry = body.partition(".")[0]
        return (
            hmac.compare_digest(mac, self._mac("session", body))
            and expiry.isdigit()
            and int(expiry) > time.time()
        )

    def csrf(self, cookie: str) -> str:
        """The token that a form of this session must send back."""
        return self._mac("csrf", cookie)

    def csrf_valid(self, cookie: str, token: str) -> bool:
        """Whether a form came from a page of this session."""
        return hmac.compare_digest(token, self.csrf(cookie))

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()
