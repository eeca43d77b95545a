"""Ports for servers of a demonstration or a test."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from simulator import ports


def held(port: int) -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", port))
    sock.listen()
    return sock


def test_no_outgoing_connection_is_given_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = server.getsockname()
        assert ports.free_port() < ports._first_outgoing()
        assert first[1] >= ports._first_outgoing()


def test_a_taken_one_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = next(n for n in iter(ports.free_port, 0) if _both_free(n))
    limits = tmp_path / "range"
    limits.write_text(f"{first + 2}\t60999\n")
    monkeypatch.setattr(ports, "RANGE", limits)
    monkeypatch.setattr(ports, "LOWEST", first)
    with held(first):
        assert {ports.free_port() for _ in range(5)} == {first + 1}
        with held(first + 1), pytest.raises(OSError, match="is free"):
            ports.free_port()


def _both_free(port: int) -> bool:
    try:
        held(port + 1).close()
    except OSError:
        return False
    return True
