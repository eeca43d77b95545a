"""A black hole of our own where smtp-sink falls short: STARTTLS, and when each message came.

    python -m benchmarks.sink PORT COUNT_FILE [--tls FOLDER] [--times FILE]

PIPELINING and, with ``--tls``, STARTTLS with a certificate made on the spot. The count is written to its file
fifty times a second; ``--times`` gets one line ``recipient time`` per message at SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import signal
import ssl
import time
from pathlib import Path
from typing import cast

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

END = b"\r\n.\r\n"


class Counter:
    """What came so far."""

    def __init__(self, keep: bool) -> None:
        self.messages = 0
        self.keep = keep
        self.times: list[tuple[bytes, float]] = []


class Session(asyncio.Protocol):
    """One conversation; every command is accepted."""

    def __init__(self, counter: Counter, tls: ssl.SSLContext | None) -> None:
        self._counter = counter
        self._tls = tls
        self._buffer = b""
        self._body = False
        self._rcpt = b""
        self._transport: asyncio.Transport | None = None
        self._secure = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        again = self._transport is not None
        self._transport = cast(asyncio.Transport, transport)
        if not again:  # the same session goes on inside TLS without a second banner
            self._transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        out: list[bytes] = []
        while self._buffer:
            if self._body:
                at = self._buffer.find(END)
                if at < 0:
                    break
                self._buffer = self._buffer[at + len(END) :]
                self._body = False
                self._counter.messages += 1
                if self._counter.keep:
                    self._counter.times.append((self._rcpt, time.time()))
                out.append(b"250 2.0.0 Ok\r\n")
                continue
            line, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                break
            self._buffer = rest
            verb = line[:4].upper()
            if verb == b"STAR" and self._tls is not None:
                self._say(out + [b"220 go ahead\r\n"])
                self._buffer = b""
                self._task = asyncio.create_task(self._upgrade())
                return
            out.append(self._reply(verb, line))
        self._say(out)

    def _say(self, out: list[bytes]) -> None:
        if out and self._transport is not None:
            self._transport.write(b"".join(out))

    def _reply(self, verb: bytes, line: bytes) -> bytes:
        if verb == b"EHLO":
            lines = [b"250-sink", b"250-PIPELINING", b"250 8BITMIME"]
            if self._tls is not None and not self._secure:
                lines.insert(1, b"250-STARTTLS")
            return b"\r\n".join(lines) + b"\r\n"
        if verb == b"DATA":
            self._body = True
            # the end mark needs a line end before it; an empty body has the one of this command
            self._buffer = b"\r\n" + self._buffer
            return b"354 go\r\n"
        if verb == b"RCPT":
            self._rcpt = line.partition(b"<")[2].partition(b">")[0]
        if verb == b"QUIT":
            if self._transport is not None:
                asyncio.get_running_loop().call_soon(self._transport.close)
            return b"221 bye\r\n"
        return b"250 2.1.0 Ok\r\n"

    async def _upgrade(self) -> None:
        assert self._transport is not None
        assert self._tls is not None
        loop = asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(self._transport, self, self._tls, server_side=True)
        except (OSError, ssl.SSLError):
            self._transport.abort()
            return
        assert transport is not None
        self._transport, self._secure = transport, True


def certificate(folder: Path) -> ssl.SSLContext:
    """A self-signed certificate (RSA-2048) and a server context with it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    file = folder / "sink.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + cert.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


async def _serve(port: int, count: Path, tls: Path | None, times: Path | None) -> None:
    loop = asyncio.get_running_loop()
    counter = Counter(times is not None)
    context = certificate(tls) if tls else None
    server = await loop.create_server(
        lambda: Session(counter, context), "127.0.0.1", port, backlog=1000
    )
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    said = -1
    while not ended.is_set():
        if counter.messages != said:
            said = counter.messages
            count.write_text(str(said))  # noqa: ASYNC240 - a few bytes, fifty times a second
        try:
            await asyncio.wait_for(ended.wait(), 0.02)
        except TimeoutError:
            continue
    server.close()
    if times is not None:
        lines = (f"{rcpt.decode()} {at:.6f}\n" for rcpt, at in counter.times)
        times.write_text("".join(lines))  # noqa: ASYNC240 - at the end, nobody waits


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("count", type=Path)
    parser.add_argument("--tls", type=Path)
    parser.add_argument("--times", type=Path)
    args = parser.parse_args()
    uvloop.run(_serve(args.port, args.count, args.tls, args.times))


if __name__ == "__main__":
    main()
