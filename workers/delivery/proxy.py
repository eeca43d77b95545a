"""Leaving through an egress proxy: SOCKS5 (RFC 1928) or a HAProxy that reads PROXY v2 headers.

With ``haproxy://`` the source's IP travels in the header and the proxy binds it; with ``socks5://`` the
proxy's own address is the one the remote sees.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from urllib.parse import urlsplit

_V2 = b"\r\n\r\n\x00\r\nQUIT\n"  # haproxy.org, proxy-protocol.txt 2.2


class ProxyFailed(OSError):
    """The proxy did not bring us through; one line why."""


def parse_proxy(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a proxy URL. Raises :class:`ValueError`."""
    parts = urlsplit(url)
    if parts.scheme not in ("socks5", "haproxy") or not parts.hostname or not parts.port:
        raise ValueError("a proxy is socks5://host:port or haproxy://host:port")
    return parts.scheme, parts.hostname, parts.port


def v2_header(source: str, source_port: int, target: str, port: int) -> bytes:
    """PROXY v2: connect to ``target`` and bind ``source``."""
    ours, theirs = ipaddress.ip_address(source), ipaddress.ip_address(target)
    if ours.version != theirs.version:
        raise ProxyFailed("source and target are of different address families")
    family = 0x11 if theirs.version == 4 else 0x21  # TCP over IPv4 / IPv6
    body = ours.packed + theirs.packed + struct.pack("!HH", source_port, port)
    return _V2 + struct.pack("!BBH", 0x21, family, len(body)) + body


async def through(
    sock: socket.socket, scheme: str, bind: str | None, target: str, port: int
) -> None:
    """Make a socket connected to the proxy lead to ``target``. Raises :class:`ProxyFailed`."""
    loop = asyncio.get_running_loop()
    if scheme == "haproxy":
        if bind is None:
            raise ProxyFailed("a source behind haproxy:// needs its IP")
        await loop.sock_sendall(sock, v2_header(bind, 0, target, port))
        return
    await loop.sock_sendall(sock, b"\x05\x01\x00")
    if await _exactly(sock, 2) != b"\x05\x00":
        raise ProxyFailed("the proxy asks for a login")
    ip = ipaddress.ip_address(target)
    kind = b"\x01" if ip.version == 4 else b"\x04"
    await loop.sock_sendall(sock, b"\x05\x01\x00" + kind + ip.packed + struct.pack("!H", port))
    _, status, _, kind_back = await _exactly(sock, 4)
    if status:
        raise ProxyFailed(f"the proxy could not connect (SOCKS5 reply {status})")
    length = {1: 4, 4: 16}.get(kind_back)
    if length is None:
        length = (await _exactly(sock, 1))[0]
    await _exactly(sock, length + 2)


async def _exactly(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        more = await loop.sock_recv(sock, count - len(data))
        if not more:
            raise ProxyFailed("the proxy closed the connection")
        data += more
    return data
