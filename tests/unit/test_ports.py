"""Ports for servers of a demonstration or a test."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

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


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """The first of three free ports; there are no others to choose from."""
    first = next(n for n in iter(ports.free_port, 0) if _free(n + 1) and _free(n + 2))
    limits = tmp_path / "range"
    limits.write_text(f"{first + 3}\t60999\n")
    monkeypatch.setattr(ports, "RANGE", limits)
    monkeypatch.setattr(ports, "LOWEST", first)
    return first


def test_a_taken_one_is_left_alone(three: int) -> None:
    with held(three + 1):
        assert ports.free_port() == three + 2, "the first was given to the fixture"
        with pytest.raises(OSError, match="is free"):
            ports.free_port()
    assert ports.free_port() == three + 1


@pytest.mark.skipif(sys.platform != "linux", reason="the sign is Linux's")
def test_another_process_is_not_given_what_nobody_listens_on_yet(three: int) -> None:
    theirs = (
        "import sys; from pathlib import Path; from simulator import ports; "
        "ports.LOWEST, ports.RANGE = int(sys.argv[1]), Path(sys.argv[2]); "
        "print(ports.free_port(), ports.free_port(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", theirs, str(three), str(ports.RANGE)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as other:
        assert other.stdout is not None
        assert set(map(int, other.stdout.readline().split())) == {three + 1, three + 2}
        with pytest.raises(OSError, match="is free"):
            ports.free_port()
        other.communicate("")
    assert ports.free_port() in (three + 1, three + 2), "the dead leave nothing behind"


def _free(port: int) -> bool:
    """Nobody listens on it, and no other test process was given it."""
    try:
        held(port).close()
        if sys.platform == "linux":
            with socket.socket(socket.AF_UNIX) as sign:
                sign.bind(f"\0mailweir-port-{port}")
    except OSError:
        return False
    return True
