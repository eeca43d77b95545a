"""Logs and metrics: JSON or console lines by structlog, without a secret or an address in them.

Every value that looks like an address is masked to ``j***@domain`` and every URL loses its password,
wherever it came from: a traceback of a library, a reply of a remote, a field of ours.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog
from prometheus_client import start_http_server

_ADDRESS = re.compile(r"([A-Za-z0-9_.+%=~\-]{1,64})@((?:[A-Za-z0-9\-]+\.)+[A-Za-z0-9\-]{2,})")
_URL_SECRET = re.compile(r"(\b[a-z][a-z0-9+.\-]*://[^\s:/@]*):[^\s/@]*@", re.I)
_KEY = re.compile(r"\bmw_([a-z0-9]{4,32})\.[A-Za-z0-9_\-]+")
_AUTH = re.compile(r"\b(AUTH\s+\S+|Authorization:\s*\S+)\s+\S+", re.I)


log = structlog.get_logger(__name__)


def serve_metrics(port: int | None) -> None:
    """Serve this process' Prometheus metrics on ``port``; None: nowhere. A port that is taken, by another
    process with the same settings, is said in the log: no mail waits for a metric."""
    if port is None:
        return
    try:
        start_http_server(port)
    except OSError as error:
        log.error(
            "metrics not served: give each process of a machine a port of its own",
            port=port,
            error=error.strerror,
        )


def mask_address(address: str) -> str:
    """``jane@example.com`` as ``j***@example.com``."""
    local, _, domain = address.rpartition("@")
    return f"{local[:1]}***@{domain}"


def redact(text: str) -> str:
    """The text without addresses, passwords in URLs, API keys, AUTH arguments or control characters."""
    text = _URL_SECRET.sub(r"\1:***@", text)
    text = _KEY.sub(r"mw_\1.***", text)
    text = _AUTH.sub(r"\1 ***", text)
    text = _ADDRESS.sub(lambda m: f"{m[1][:1]}***@{m[2]}", text)
    return "".join(
        c if c == "\n" or c == "\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text
    )


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value)
        elif not isinstance(value, (int, float, bool, type(None))):
            event[key] = redact(str(value))
    return event


CHATTY = ("amqp", "celery", "httpcore", "httpx", "kombu")
"""Libraries that say something of every message or request at info: heard from warning on, unless the
level is debug."""


def configure_logging(level: str, process: str, *, stream: TextIO | None = None) -> None:
    """Send our and every library's log lines as one JSON object a line to ``stream`` (stderr).

    ``level`` is debug, info, warning or error; ``process`` names this process in every line.
    """
    out = stream or sys.stderr

    def named(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("process", process)  # in every thread, which a context variable is not
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        named,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _redact_event,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in CHATTY:
        quiet = logging.NOTSET if root.level <= logging.DEBUG else logging.WARNING
        logging.getLogger(name).setLevel(quiet)
