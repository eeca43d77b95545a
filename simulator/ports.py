"""Ports of loopback for servers that are started for a while: demonstrations, benchmarks, tests."""

from __future__ import annotations

import random
import socket
import sys
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 15_000
HIGHEST = 32_768  # Linux' usual first port for outgoing connections (ip(7), ip_local_port_range)
TRIES = 1000
_CHANCE = random.SystemRandom()  # Hypothesis seeds the other one alike in every process
_OURS: list[socket.socket] = []  # until this process ends


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago, that no outgoing connection is given, and that
    nobody who asks here is given while this process lives: a server may take seconds until it listens.

    A port the kernel chooses is one it soon gives to some outgoing connection, and a server that starts a
    second later finds it taken. Raises :class:`OSError` where none is free.
    """
    for _ in range(TRIES):
        port = _CHANCE.randrange(LOWEST, _first_outgoing())
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if _becomes_ours(port):
                return port
    raise OSError(f"no port of 127.0.0.1 between {LOWEST} and {_first_outgoing()} is free")


def _becomes_ours(port: int) -> bool:
    """Whether no process has been given it. The sign is a name in Linux' abstract socket namespace: one
    machine (or container) shares it as it shares its ports, and a dead process leaves none behind."""
    if sys.platform != "linux":
        return True
    sign = socket.socket(socket.AF_UNIX)
    try:
        sign.bind(f"\0mailweir-port-{port}")
    except OSError:
        sign.close()
        return False
    _OURS.append(sign)
    return True


def _first_outgoing() -> int:
    try:
        first = int(RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return HIGHEST
    # a machine that gives low ports to outgoing connections leaves none to choose from
    return first if first > LOWEST else HIGHEST
