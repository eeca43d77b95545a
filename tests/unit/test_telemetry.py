"""No secret and no address leaves through a log line."""

from __future__ import annotations

import io
import json
import logging
import socket
import threading

import structlog

from mailweir.plumbing.telemetry import configure_logging, redact, serve_metrics


def test_redact_masks_addresses_urls_keys_and_auth() -> None:
    text = (
        "to jane.doe@example.com via redis://user:hunter2@host/0 with mw_abcd1234.s3cr3tvalue "
        "AUTH PLAIN AGphbmUAaHVudGVyMg=="
    )
    out = redact(text)
    for secret in ("jane.doe", "hunter2", "s3cr3tvalue", "AGphbmUAaHVudGVyMg"):
        assert secret not in out
    assert "j***@example.com" in out


def test_redact_escapes_control_characters() -> None:
    assert redact("a\x1b[31m\rb") == "a\\x1b[31m\\x0db"


def test_log_lines_are_json_and_redacted_for_libraries_too() -> None:
    stream = io.StringIO()
    before = logging.getLogger().handlers[:]
    try:
        configure_logging("info", "test", stream=stream)
        structlog.get_logger("ours").info("hello", recipient="someone@example.org")
        logging.getLogger("theirs").warning("failed for %s", "other@example.org")
        try:
            raise RuntimeError("boom third@example.org")
        except RuntimeError:
            structlog.get_logger("ours").exception("died")
    finally:
        logging.getLogger().handlers[:] = before
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning", "error"]
    assert all("process" in line for line in lines)
    for name in ("someone", "other", "third"):
        assert name not in stream.getvalue()


def test_libraries_that_chatter_are_heard_from_warning_on_and_every_thread_is_named() -> None:
    stream = io.StringIO()
    before = logging.getLogger().handlers[:]
    try:
        configure_logging("info", "bulk-1", stream=stream)
        logging.getLogger("celery.app.trace").info("Task workers.deliver[1] succeeded")
        logging.getLogger("kombu").warning("connection lost")
        thread = threading.Thread(target=lambda: structlog.get_logger("ours").info("in a thread"))
        thread.start()
        thread.join()
    finally:
        logging.getLogger().handlers[:] = before
        structlog.reset_defaults()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["connection lost", "in a thread"]
    assert {line["process"] for line in lines} == {"bulk-1"}


def test_a_taken_metrics_port_is_said_and_harms_nobody() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with structlog.testing.capture_logs() as said:
            serve_metrics(port)
    assert [(line["log_level"], line["port"]) for line in said] == [("error", port)]
    assert "of its own" in said[0]["event"]
    serve_metrics(None)
