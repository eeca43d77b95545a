"""VERP: the job's id inside ``mail_from``, signed, so that a DSN finds its job whatever its text says.

``b+<34 base-32 characters>@bounce.example.com``: version (1 byte), the day it was made (2), job id (8), and 10
bytes of HMAC-SHA256 over them and the domain (80 bits). Lower case only, since some MTAs fold case; no
personal data; valid for 30 days. Keys rotate: several may be accepted, the first makes new ones.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import struct
from collections.abc import Sequence

VERSION = 1
DAYS = 30
"""Days a token is accepted; bounces later than that are counted but find no job."""

_MAC_BYTES = 10
_BODY = struct.Struct(">BHQ")
_DAY = 86400.0
_TOKEN = re.compile(r"(?:^|[<\s\"'=:;,])b\+([a-z2-7]{34})@([a-z0-9.-]{1,253})", re.IGNORECASE)


def _mac(key: bytes, body: bytes, domain: str) -> bytes:
    purpose = hmac.new(key, b"verp", hashlib.sha256).digest()
    return hmac.new(purpose, body + domain.encode(), hashlib.sha256).digest()[:_MAC_BYTES]


def make(job_id: int, key: bytes, domain: str, now: float) -> str:
    """The reverse path of a job: ``now`` in policy seconds, ``domain`` the bounce domain."""
    domain = domain.lower().rstrip(".")
    body = _BODY.pack(VERSION, int(now // _DAY) & 0xFFFF, job_id)
    token = base64.b32encode(body + _mac(key, body, domain)).decode().rstrip("=").lower()
    return f"b+{token}@{domain}"


def parse(address: str, keys: Sequence[bytes], now: float) -> int | None:
    """The job an address of ours names; None for a foreign, forged or expired one."""
    found = _TOKEN.search(address[:1000])
    if found is None:
        return None
    token, domain = found[1].upper(), found[2].lower().rstrip(".")
    raw = base64.b32decode(token + "=" * (-len(token) % 8))
    body, mac = raw[: _BODY.size], raw[_BODY.size :]
    version, day, job_id = _BODY.unpack(body)
    if version != VERSION or not any(
        hmac.compare_digest(mac, _mac(key, body, domain)) for key in keys
    ):
        return None
    age = (int(now // _DAY) - day) & 0xFFFF
    # a clock a day behind (age wraps to 65535) is forgiven
    return int(job_id) if age <= DAYS or age == 0xFFFF else None
