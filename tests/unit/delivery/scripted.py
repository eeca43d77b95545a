"""An SMTP server on loopback that misbehaves as a test tells it, and records what it was told."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType


class Act(Enum):
    """What a server can do in place of answering."""

    SILENCE = "silence"
    RESET = "reset"
    CLOSE = "close"
    HALF = "half"  # two digits of a reply, then silence
    DEAF = "deaf"  # to DATA: says 354 and reads no further


Answer = str | bytes | Act
DEFAULTS: dict[str, Answer] = {
    "banner": "220 mx.test ESMTP",
    "ehlo": "250-mx.test\r\n250-PIPELINING\r\n250-SIZE 20000000\r\n250-8BITMIME\r\n250 SMTPUTF8",
    "helo": "250 mx.test",
    "starttls": "220 go ahead",
    "auth": "235 2.7.0 ok",
    "mail": "250 2.1.0 ok",
    "rcpt": "250 2.1.5 ok",
    "data": "354 go ahead",
    "dot": "250 2.0.0 queued",
    "rset": "250 2.0.0 ok",
    "quit": "221 2.0.0 bye",
}


@dataclass
class Mail:
    """One mail as it came over the wire, dots unstuffed."""

    mail_from: str
    rcpt: str
    data: bytes
    connection: int
    by: str  # DATA or BDAT


@dataclass
class Scripted:
    """``answers`` per stage: one for all times, or a list used up one by one, its last for ever.
    ``before_dot`` is awaited, with the count of mails so far, before a mail is answered."""

    answers: dict[str, Answer | list[Answer]] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    implicit_tls: bool = False
    bind: str = "127.0.0.1"
    port: int = 0
    before_dot: Callable[[int], Awaitable[None]] | None = None
    mails: list[Mail] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    peak: int = 0
    peers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._queues: dict[str, deque[Answer]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._free = asyncio.Event()

    async def __aenter__(self) -> Scripted:
        self._server = await asyncio.start_server(
            self._serve,
            self.bind,
            self.port,
            limit=1 << 20,
            ssl=self.tls if self.implicit_tls else None,
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._free.set()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _answer(self, stage: str) -> Answer:
        script = self.answers.get(stage, DEFAULTS.get(stage, "500 5.5.1 what?"))
        if not isinstance(script, list):
            return script
        queue = self._queues.setdefault(stage, deque(script))
        return queue.popleft() if len(queue) > 1 else queue[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        self.open += 1
        self.peak = max(self.peak, self.open)
        self.peers.append(writer.get_extra_info("peername")[0])
        try:
            await _Session(self, reader, writer, self.connections).run()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client is gone or we cut it
        finally:
            self.open -= 1
            writer.close()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def forever(self) -> None:
        """Until the test is over."""
        await self._free.wait()


class _Session:
    def __init__(
        self,
        server: Scripted,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        number: int,
    ) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer
        self.number = number
        self.mail_from = ""
        self.rcpt = ""

    async def run(self) -> None:
        await self._say("banner")
        while line := await self.reader.readline():
            text = line.decode("utf-8", "replace").strip()
            self.server.commands.append(text)
            verb = text.split(" ")[0].upper()
            if verb == "MAIL":
                self.mail_from = text.split("<", 1)[1].split(">", 1)[0]
            if verb == "RCPT":
                self.rcpt = text.split("<", 1)[1].split(">", 1)[0]
            if verb == "BDAT":
                data = await self.reader.readexactly(int(text.split(" ")[1]))
                await self._take(data, "BDAT")
                continue
            answer = await self._say({"EHLO": "ehlo", "HELO": "helo"}.get(verb, verb.lower()))
            if verb == "STARTTLS" and answer.startswith("220"):
                await self._start_tls()
            elif verb == "DATA" and answer.startswith("354"):
                await self._read_body()
            elif verb == "QUIT":
                return

    async def _start_tls(self) -> None:
        if self.server.tls is None:
            raise ConnectionError  # promised what it cannot do: hangs up
        plain = self.writer.transport
        try:
            await self.writer.start_tls(self.server.tls)
        except (AttributeError, ssl.SSLError) as error:
            # the client hung up in the handshake; asyncio 3.11 leaves a writer without a transport,
            # over which its own __del__ trips
            if self.writer.transport is None:
                self.writer._transport = plain
            raise ConnectionError from error

    async def _read_body(self) -> None:
        lines: list[bytes] = []
        while (line := await self.reader.readline()) != b".\r\n":
            if not line:
                raise ConnectionError
            lines.append(line[1:] if line.startswith(b".") else line)
        await self._take(b"".join(lines), "DATA")

    async def _take(self, data: bytes, by: str) -> None:
        mail = Mail(self.mail_from, self.rcpt, data, self.number, by)
        if data:
            self.server.mails.append(mail)
        if self.server.before_dot is not None:
            await self.server.before_dot(len(self.server.mails))
        await self._say("dot")

    async def _say(self, stage: str) -> str:
        answer = self.server._answer(stage)
        if isinstance(answer, Act):
            await self._act(answer)
        raw = answer if isinstance(answer, bytes) else f"{answer}\r\n".encode()
        self.writer.write(raw)
        await self.writer.drain()
        return raw[:3].decode("ascii", "replace")

    async def _act(self, act: Act) -> None:
        if act is Act.DEAF:
            self.writer.write(b"354 go ahead\r\n")
        if act is Act.HALF:
            self.writer.write(b"25")
        if act in (Act.SILENCE, Act.HALF, Act.DEAF):
            await self.server.forever()
        if act is Act.RESET:
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        raise ConnectionError


def offer(*keywords: str) -> str:
    """An EHLO reply that offers exactly these keywords."""
    lines: Sequence[str] = ("mx.test", *keywords)
    return "\r\n".join(
        f"250{'-' if i < len(lines) - 1 else ' '}{line}" for i, line in enumerate(lines)
    )
