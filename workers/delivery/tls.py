"""TLS contexts, one per policy and CA file, built once: building one costs milliseconds."""

from __future__ import annotations

import ssl
from functools import lru_cache

from workers.delivery.types import TlsMode


@lru_cache(maxsize=64)
def client_context(mode: TlsMode, ca_file: str | None) -> ssl.SSLContext:
    """The context of a policy. Only ``verified`` checks certificate and host name; the others encrypt
    against listeners (RFC 7435), which most MX certificates allow no more than.

    Raises :class:`OSError` or :class:`ssl.SSLError` for a CA file that cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca_file)
    if mode is not TlsMode.VERIFIED:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
