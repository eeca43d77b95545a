"""Writes a small MaxMind database (MaxMind-DB-spec 2.0), so that tests need no file of anybody's."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from pathlib import Path

Value = str | int | list["Value"] | dict[str, "Value"]
_MARKER = b"\xab\xcd\xefMaxMind.com"


class Count(int):
    """Written as uint32; a plain int is a uint16."""


class Long(int):
    """Written as uint64."""


def write(path: Path, networks: Mapping[str, Value]) -> Path:
    """A database of IPv4 ``networks`` (CIDR, not nested) with records of 24 bits."""
    nodes: list[list[int | str | None]] = [[None, None]]
    for network in networks:
        bits = ipaddress.IPv4Network(network)
        number = int(bits.network_address)
        at = 0
        for i in range(bits.prefixlen):
            bit = number >> (31 - i) & 1
            if i == bits.prefixlen - 1:
                nodes[at][bit] = network
                break
            below = nodes[at][bit]
            if not isinstance(below, int):
                nodes.append([None, None])
                below = nodes[at][bit] = len(nodes) - 1
            at = below
    data, places = b"", {}
    for network, record in networks.items():
        places[network] = len(data)
        data += _encode(record)
    count = len(nodes)

    def record_of(entry: int | str | None) -> bytes:
        if entry is None:
            number = count
        else:
            number = entry if isinstance(entry, int) else count + 16 + places[entry]
        return number.to_bytes(3, "big")

    tree = b"".join(record_of(entry) for node in nodes for entry in node)
    about: Value = {
        "node_count": Count(count),
        "record_size": 24,
        "ip_version": 4,
        "database_type": "Test-Country",
        "binary_format_major_version": 2,
        "binary_format_minor_version": 0,
        "description": {},
        "languages": [],
        "build_epoch": Long(1_700_000_000),
    }
    path.write_bytes(tree + bytes(16) + data + _MARKER + _encode(about))
    return path


def country(continent: str, iso: str) -> Value:
    """A record as country databases hold it."""
    return {"continent": {"code": continent}, "country": {"iso_code": iso}}


def _encode(value: Value) -> bytes:
    if isinstance(value, str):
        raw = value.encode()
        return _control(2, len(raw)) + raw
    if isinstance(value, int):
        raw = struct.pack(">Q", value).lstrip(b"\0")
        if isinstance(value, Long):
            return bytes((len(raw), 9 - 7)) + raw  # uint64 is an extended type
        return _control(6 if isinstance(value, Count) else 5, len(raw)) + raw
    if isinstance(value, list):
        return bytes((len(value), 11 - 7)) + b"".join(map(_encode, value))  # extended too
    return _control(7, len(value)) + b"".join(_encode(k) + _encode(v) for k, v in value.items())


def _control(kind: int, size: int) -> bytes:
    assert size < 285
    return bytes((kind << 5 | size,)) if size < 29 else bytes((kind << 5 | 29, size - 29))
