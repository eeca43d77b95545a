"""AWS Signature Version 4 for a request we build ourselves, so that no AWS SDK is needed.

Source: docs.aws.amazon.com, "Create a signed AWS API request". Tests compare with botocore.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlsplit


class NoCredentials(Exception):
    """The environment holds no AWS credentials."""


@dataclass(frozen=True)
class Credentials:
    """An AWS key pair, with the session token of temporary ones."""

    key: str
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


def credentials() -> Credentials:
    """From ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``.

    Raises :class:`NoCredentials`.
    """
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret:
        raise NoCredentials("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set")
    return Credentials(key, secret, os.environ.get("AWS_SESSION_TOKEN") or None)


def sign(
    method: str,
    url: str,
    headers: dict[str, str],
    body: bytes,
    *,
    service: str,
    region: str,
    by: Credentials,
    now: datetime | None = None,
) -> dict[str, str]:
    """``headers`` plus Host, X-Amz-Date, the token if any, and Authorization."""
    moment = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    day = moment[:8]
    parts = urlsplit(url)
    signed = {**headers, "Host": parts.netloc, "X-Amz-Date": moment}
    if by.token:
        signed["X-Amz-Security-Token"] = by.token
    lower = {name.lower(): " ".join(value.split()) for name, value in signed.items()}
    names = ";".join(sorted(lower))
    query = "&".join(
        f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}"
        for k, v in sorted(parse_qsl(parts.query, keep_blank_values=True))
    )
    request = "\n".join(
        [
            method,
            quote(parts.path or "/", safe="/-_.~"),
            query,
            *(f"{name}:{lower[name]}" for name in sorted(lower)),
            "",
            names,
            hashlib.sha256(body).hexdigest(),
        ]
    )
    scope = f"{day}/{region}/{service}/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}"
    key = f"AWS4{by.secret}".encode()
    for step in (day, region, service, "aws4_request"):
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    signed["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={by.key}/{scope}, SignedHeaders={names},"
        f" Signature={signature}"
    )
    return signed
