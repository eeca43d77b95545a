"""An SMTP server on loopback, in a thread of its own, that decides by recipient what becomes of a mail and
writes down every decision with its time before it acts."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

After = Literal["reply", "reset", "silence"]
OK = "250 2.1.5 ok"


class Seen(NamedTuple):
    """One thing that happened. ``at``: real Unix seconds. ``what``: connect, rcpt, stored."""

    at: float
    what: str
    recipient: str = ""
    reply: str = ""
    open: int = 0  # sessions open then, this one included


@dataclass
class Sink:
    """``rcpt(recipient, times asked before)`` is the reply to RCPT; ``after(recipient, times stored
    before)`` what follows a mail that is stored. While ``deaf``, nothing is read or answered: a black
    hole that takes connections."""

    rcpt: Callable[[str, int], str] = lambda recipient, times: OK
    after: Callable[[str, int], After] = lambda recipient, times: "reply"
    port: int = 0
    deaf: bool = False
    seen: list[Seen] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)
    open: int = 0

    def times(self, what: str) -> list[float]:
        """When such things happened."""
        return [one.at for one in list(self.seen) if one.what == what]

    def note(self, what: str, recipient: str = "", reply: str = "") -> None:
        self.seen.append(Seen(time.time(), what, recipient, reply, self.open))


class _Session(asyncio.Protocol):
    """Pipelining: the replies of a packet's commands leave in order."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = bytearray()
        self._recipient = ""
        self._in_data = False
        self._dead = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._sink.open += 1
        self._sink.note("connect")
        self._dead = self._sink.deaf
        if not self._dead:
            self._say("220 sink.test ESMTP")

    def connection_lost(self, exc: Exception | None) -> None:
        self._sink.open -= 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._dead = self._dead or self._sink.deaf
        while not self._dead:
            end = self._buffer.find(b"\r\n.\r\n" if self._in_data else b"\r\n")
            if self._in_data and self._buffer.startswith(b".\r\n"):
                end = -2
            elif end < 0:
                return
            line = bytes(self._buffer[: max(end, 0)])
            del self._buffer[: end + (5 if self._in_data else 2)]
            if self._in_data:
                self._store()
            else:
                self._command(line.decode("utf-8", "replace"))

    def _command(self, line: str) -> None:
        verb = line[:4].upper()
        if verb == "EHLO":
            self._say("250-sink.test\r\n250-PIPELINING\r\n250 8BITMIME")
        elif verb == "RCPT":
            recipient = line.split("<", 1)[1].split(">", 1)[0]
            reply = self._sink.rcpt(recipient, self._sink.asked[recipient])
            self._sink.asked[recipient] += 1
            self._sink.note("rcpt", recipient, reply)
            self._recipient = recipient if reply.startswith("2") else ""
            self._say(reply)
        elif verb == "DATA":
            self._in_data = bool(self._recipient)
            self._say("354 go ahead" if self._in_data else "503 5.5.1 no recipient")
        elif verb == "QUIT":
            self._say("221 2.0.0 bye")
            self._dead = True
            self._transport.close()
        else:
            self._say("250 2.0.0 ok")

    def _store(self) -> None:
        self._in_data = False
        sink, recipient = self._sink, self._recipient
        after = sink.after(recipient, sink.stored[recipient])
        sink.stored[recipient] += 1
        sink.note("stored", recipient, after)
        if after == "reply":
            self._say("250 2.0.0 stored")
            return
        self._dead = True
        if after == "reset":
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def _say(self, text: str) -> None:
        self._transport.write(text.encode() + b"\r\n")


@contextmanager
def serving(sink: Sink) -> Iterator[Sink]:
    """Serve in a thread until the block ends."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        loop.create_server(lambda: _Session(sink), "127.0.0.1", sink.port, backlog=500)
    )
    sink.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield sink
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        server.close()
        loop.close()
