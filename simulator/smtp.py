"""One SMTP session of a simulated provider: an asyncio protocol with pipelining (RFC 5321, RFC 2920)."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mailweir.plumbing.clock import Clock
from simulator.behaviour import Behaviour, Memory, at_connect, at_mail, at_rcpt
from simulator.witness import Witness

MAX_LINE = 4096  # bytes; more than any command of RFC 5321 4.5.3.1
END = b"\r\n.\r\n"


@dataclass(slots=True)
class Provider:
    """One simulated provider: name, behaviour in force, memory, witness, counts of replies."""

    name: str
    behaviour: Behaviour
    witness: Witness
    clock: Clock
    memory: Memory = field(default_factory=Memory)
    refusals: dict[str, int] = field(default_factory=dict)
    chance: Callable[[], float] = random.random
    tls: ssl.SSLContext | None = None  # offers STARTTLS (RFC 3207)
    sessions: set[Session] = field(default_factory=set)


class Session(asyncio.Protocol):
    """A conversation; replies of one packet's commands leave in one write."""

    def __init__(self, provider: Provider, host: int) -> None:
        self._p = provider
        self._host = host
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._data = False
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._sent = 0
        self._client = ""
        self._transport: asyncio.Transport | None = None
        self._busy: asyncio.TimerHandle | None = None
        self._closing = False
        self._secure = False
        self._upgrade: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._client = peer[0] if peer else ""
        memory = self._p.memory
        memory.open[self._client] = memory.open.get(self._client, 0) + 1
        self._p.sessions.add(self)
        refusal = at_connect(self._p.behaviour, memory, self._client, self._host, self._p.chance())
        if refusal == "silent":
            self._closing = True
        elif refusal == "close":
            transport.abort()
        elif refusal is not None:
            self._refuse("connect", refusal)
            self._flush()
        else:
            self._say(f"220 {self._p.name}.simulator.invalid ESMTP simulated")
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        memory = self._p.memory
        memory.open[self._client] = max(0, memory.open.get(self._client, 1) - 1)
        self._p.sessions.discard(self)
        if self._busy is not None:
            self._busy.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._busy is None:
            self._work()

    # --- the conversation

    def _work(self) -> None:
        """Answer what is buffered, in order, stopping where a reply is to be slow."""
        self._busy = None
        while not self._closing and self._upgrade is None:
            if self._data:
                end = self._find_end()
                if end < 0:
                    break
                body = bytes(self._buffer[:end])
                del self._buffer[: end + (3 if end == 0 else len(END))]
                self._data = False
                if self._finish(body):
                    return
                continue
            end = self._buffer.find(b"\n")
            if end < 0:
                if len(self._buffer) > MAX_LINE:
                    self._say("500 5.5.2 Line too long")
                    self._close()
                break
            line = bytes(self._buffer[:end]).rstrip(b"\r")
            del self._buffer[: end + 1]
            self._command(line)
            slow = self._p.behaviour.slow
            if slow:
                self._busy = asyncio.get_running_loop().call_later(slow, self._resume)
                return
        self._flush()

    def _resume(self) -> None:
        self._flush()
        self._work()

    def _find_end(self) -> int:
        if self._buffer.startswith(b".\r\n"):
            return 0
        return self._buffer.find(END)

    def _command(self, line: bytes) -> None:
        verb, _, rest = line.decode("utf-8", "replace").partition(" ")
        verb = verb.upper()
        behaviour = self._p.behaviour
        if verb in ("EHLO", "HELO"):
            if reply := behaviour.replies.get("ehlo"):
                self._refuse("ehlo", reply)
            elif verb == "HELO":
                self._say(f"250 {self._p.name}.simulator.invalid")
            else:
                lines = [
                    f"{self._p.name}.simulator.invalid",
                    f"SIZE {behaviour.size}",
                    *behaviour.extensions,
                ]
                if self._p.tls is not None and not self._secure:
                    lines.append("STARTTLS")
                self._say(
                    "\r\n".join(f"250-{text}" for text in lines[:-1]) + f"\r\n250 {lines[-1]}"
                )
        elif verb == "MAIL":
            self._reset()
            refusal = at_mail(
                behaviour, self._p.memory, self._client, self._sent, self._p.clock.now()
            )
            if refusal:
                self._refuse("mail", refusal)
            else:
                self._sender = _path(rest)
                self._say("250 2.1.0 OK")
        elif verb == "RCPT":
            if self._sender is None:
                self._say("503 5.5.1 MAIL first")
                return
            recipient = _path(rest)
            refusal = at_rcpt(
                behaviour,
                self._p.memory,
                self._client,
                self._sender,
                recipient,
                self._p.clock.now(),
            )
            if refusal:
                self._refuse("rcpt", refusal)
            else:
                self._recipients.append(recipient)
                self._say("250 2.1.5 OK")
        elif verb == "DATA":
            if reply := behaviour.replies.get("data"):
                self._refuse("data", reply)
            elif not self._recipients:
                self._say("554 5.5.1 No valid recipients")
            else:
                self._data = True
                self._say("354 Go ahead")
        elif verb == "RSET":
            self._reset()
            self._say("250 2.0.0 OK")
        elif verb == "STARTTLS" and self._p.tls is not None and not self._secure:
            self._starttls()
        elif verb == "AUTH":  # nobody has an account here
            self._refuse("auth", behaviour.replies.get("auth", "535 5.7.8 Credentials invalid"))
        elif verb == "NOOP":
            self._say("250 2.0.0 OK")
        elif verb == "QUIT":
            self._say("221 2.0.0 Bye")
            self._close()
        else:
            self._say("502 5.5.1 Command not recognised")

    def _finish(self, body: bytes) -> bool:
        """Record the message and answer the dot; True when the rest must wait for a slow reply."""
        behaviour = self._p.behaviour
        if reply := behaviour.replies.get("dot"):
            self._refuse("dot", reply)
            self._reset()
            return False
        data = body.replace(b"\r\n..", b"\r\n.")
        if data.startswith(b".."):
            data = data[1:]
        data += b"\r\n"
        for recipient in self._recipients:
            self._p.witness.write(
                self._p.name, self._client, self._sender or "", recipient, data, time.time()
            )
        self._sent += 1
        self._reset()
        if behaviour.after_dot == "reset":
            assert self._transport is not None
            self._closing = True
            self._transport.abort()
            return True
        if behaviour.after_dot == "silence":
            self._closing = True
            return True
        self._say("250 2.0.0 OK simulated")
        if behaviour.slow_dot:
            self._busy = asyncio.get_running_loop().call_later(behaviour.slow_dot, self._resume)
            return True
        return False

    def _starttls(self) -> None:
        """Answer 220 and upgrade; what was sent in clear after STARTTLS is dropped (RFC 3207 6)."""
        assert self._transport is not None
        assert self._p.tls is not None
        transport, context = self._transport, self._p.tls
        self._say("220 2.0.0 Ready to start TLS")
        self._flush()
        self._buffer.clear()
        self._reset()
        transport.pause_reading()

        async def upgrade() -> None:
            loop = asyncio.get_running_loop()
            try:
                secure = await loop.start_tls(transport, self, context, server_side=True)
            except (OSError, ssl.SSLError):
                transport.abort()
                return
            self._transport = secure
            self._secure = True
            self._upgrade = None
            self._work()

        self._upgrade = asyncio.get_running_loop().create_task(upgrade())

    # --- small parts

    def _reset(self) -> None:
        self._sender = None
        self._recipients = []

    def _say(self, text: str) -> None:
        self._out.append(text.encode("latin-1", "replace") + b"\r\n")

    def _refuse(self, stage: str, reply: str) -> None:
        key = f"{stage} {reply[:3]}"
        self._p.refusals[key] = self._p.refusals.get(key, 0) + 1
        self._say(reply)
        if reply.startswith("421"):
            self._close()

    def _close(self) -> None:
        self._closing = True
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def drop(self) -> None:
        """Cut the session, as a dying host would."""
        if self._transport is not None:
            self._transport.abort()


def _path(rest: str) -> str:
    """The address in ``FROM:<a@b> SIZE=1``."""
    start, end = rest.find("<"), rest.find(">")
    return rest[start + 1 : end] if 0 <= start < end else ""
