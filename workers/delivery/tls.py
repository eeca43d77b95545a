"""TLS contexts, one per policy and CA file, built once: building one costs milliseconds."""

from __future__ import annotations

import os
import ssl
from functools import lru_cache

from workers.delivery.types import TlsMode


def client_context(mode: TlsMode, ca_file: str | None) -> ssl.SSLContext:
    """The context of a policy. Only ``verified`` checks certificate and host name; the others encrypt
    against listeners (RFC 7435), which most MX certificates allow no more than; under ``dane`` TLSA
    records are matched after the handshake.

    A CA file is read again when it changes. Raises :class:`OSError` or :class:`ssl.SSLError` for one
    that cannot be used.
    """
    return _built(mode, ca_file, os.stat(ca_file).st_mtime_ns if ca_file else 0)


@lru_cache(maxsize=64)
def _built(mode: TlsMode, ca_file: str | None, _: int) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca_file)
    if mode is not TlsMode.VERIFIED:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
