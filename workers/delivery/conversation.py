"""The SMTP conversation of an attempt with times, as compact JSON (P44). Pure.

``{"host":"mx1.example.net:25","tls":true,"mail":1,"steps":[[0,">","EHLO out.example.org"],...]}``:
``steps`` are milliseconds since the attempt began, direction (``>`` we, ``<`` the remote, ``!`` our
remark) and the line; ``mail`` is 1 for the first mail of a connection. AUTH exchanges and the recipient
are masked, and no conversation is longer than :data:`MAX_STEPS` lines of :data:`MAX_LINE` characters.
"""

from __future__ import annotations

import re

import msgspec

MAX_STEPS = 60
MAX_LINE = 500

Step = tuple[int, str, str]
_encoder = msgspec.json.Encoder()


def mask_address(address: str) -> str:
    """``jane.doe@example.org`` as ``j***@example.org``."""
    local, at, domain = address.rpartition("@")
    return f"{local[:1]}***@{domain}" if at else "***"


def masker(address: str) -> tuple[re.Pattern[str], str]:
    """Pattern and replacement that hide an address; a remote may write it in any case."""
    return re.compile(re.escape(address), re.IGNORECASE), mask_address(address).replace(
        "\\", "\\\\"
    )


def names(text: str, address: str) -> bool:
    """Whether ``text`` may name ``address``; a cheap question before :func:`hide`."""
    local = address.rpartition("@")[0] or address
    return "@" in text or local.lower() in text.lower()


def hide(text: str, address: str) -> str:
    """``text`` with every occurrence of ``address`` masked."""
    if not names(text, address):
        return text
    local = address.rpartition("@")[0] or address
    pattern, replacement = masker(address)
    text = pattern.sub(replacement, text)
    if len(local) > 3 and local.lower() in text.lower():
        # "550 unknown user jane.doe": the local part alone names the person as well
        alone = re.compile(rf"(?<![\w.+-]){re.escape(local)}(?![\w+-])", re.IGNORECASE)
        text = alone.sub(f"{local[:1]}***", text)
    return text


class Handshake:
    """Collects the lines of a connection's opening; AUTH lines and what follows them are masked."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.steps: list[Step] = []
        self._secret = False

    def add(self, now: float, direction: str, text: str) -> None:
        """One line at loop time ``now``."""
        if direction == ">":
            if text.startswith("AUTH "):
                self._secret = True
                text = f"{' '.join(text.split(' ')[:2])} ***"
            elif self._secret:
                text = "***"
        elif direction == "<" and self._secret and not text.startswith("334"):
            self._secret = False
        elif direction == "<" and self._secret:
            text = "334 ***"
        if len(self.steps) < MAX_STEPS // 2:
            self.steps.append((round((now - self.started) * 1000), direction, text[:MAX_LINE]))


def encode(host: str, tls: bool, mail: int, steps: list[Step]) -> str:
    """The JSON text of a conversation."""
    return _encoder.encode(
        {"host": host, "tls": tls, "mail": mail, "steps": steps[:MAX_STEPS]}
    ).decode()
