"""aiosmtplib's protocol with strict replies in a queue, so that commands can be pipelined (RFC 2920).

aiosmtplib holds one reply future and drops what comes between commands; that serves its dialogue
(EHLO, STARTTLS, AUTH), which we keep, but not several commands in flight. So the reading half is ours:
every reply owed is counted, one too many or one unreadable ends the session, and whatever waits is
settled when it ends. Why this and not a client of our own: docs/decisions/0010-smtp-client.md.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import cast

import aiosmtplib
from aiosmtplib.protocol import COMMAND_INJECTION_REGEX, SMTPProtocol
from aiosmtplib.response import SMTPResponse

from workers.delivery.replies import MalformedReply, Reply, ReplyReader

CHECKED_VERSIONS = ("5.1.",)
"""aiosmtplib versions whose private parts this file was read against; a test guards them."""

SLICE = 64 * 1024  # bytes of a body handed to the transport before we look whether it keeps up


class SessionLost(Exception):
    """The session is over. ``kind`` is a word of ``Result.error``; ``reply`` the remote's last words."""

    def __init__(self, kind: str, detail: str, reply: Reply | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.reply = reply


class PipelinedProtocol(SMTPProtocol):
    """One connection: counts replies owed, keeps them in order, fails everything that waits at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_reply: int) -> None:
        super().__init__(loop=loop)
        self.failure: SessionLost | None = None
        self.log: Callable[[str, str], None] | None = None  # handshake lines for the conversation
        self.on_lost: Callable[[], None] | None = None  # told once, when the session is over
        self._reader = ReplyReader(max_reply)
        self._fresh: list[Reply] = []
        self._replies: deque[Reply] = deque()
        # one entry per reply owed: None queues it for reply(), a callable gets it at once
        self._owed: deque[Callable[[Reply], None] | None] = deque((None,))  # the greeting
        self._waiter: asyncio.Future[None] | None = None
        self._due = 0.0  # loop time by which what is waited for must have come
        self._within = 0.0  # seconds that were allowed
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._settling = 0  # callables among the owed

    # --- events -----------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        if self.failure is not None:
            return
        fresh = self._fresh
        try:
            self._reader.feed(data, fresh)
        except MalformedReply as error:
            self._hand_out(fresh)
            self.fail(SessionLost("malformed", str(error)))
            return
        self._hand_out(fresh)

    def _hand_out(self, fresh: list[Reply]) -> None:
        for reply in fresh:
            if not self._owed:
                # nobody asked: 4yz and 5yz are a goodbye, anything else would shift all later replies
                kind = "closed" if reply.code >= 400 else "malformed"
                self.fail(SessionLost(kind, f"unsolicited reply: {reply.text}", reply))
                break
            settle = self._owed.popleft()
            if settle is None:
                self._replies.append(reply)
            else:
                self._settling -= 1
                settle(reply)
        fresh.clear()
        self._wake()

    def eof_received(self) -> bool:
        self.fail(SessionLost("closed", "the remote closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        detail = f"connection lost: {type(exc).__name__}" if exc else "the connection was closed"
        self.fail(SessionLost("reset" if exc else "closed", detail))
        super().connection_lost(exc)

    def fail(self, lost: SessionLost) -> None:
        """End the session, once: whoever waits gets ``lost``, later waits too."""
        if self.failure is None:
            self.failure = lost
            if self.transport is not None:
                cast(asyncio.WriteTransport, self.transport).abort()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self.on_lost is not None:
                self.on_lost()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- waiting ----------------------------------------------------------------------------
    async def reply(self, within: float) -> Reply:
        """The next queued reply. Raises :class:`SessionLost` (also after ``within`` seconds)."""
        while not self._replies:
            await self._change(within)
        return self._replies.popleft()

    def reply_at_once(self) -> Reply | None:
        """The next queued reply, if it is there."""
        return self._replies.popleft() if self._replies else None

    async def settled(self, within: float) -> None:
        """Until every reply owed to a callable has come. Raises :class:`SessionLost`."""
        while self._settling:
            await self._change(within)

    async def _change(self, within: float) -> None:
        if self.failure is not None:
            raise self.failure
        waiter = self._waiter = self._loop.create_future()
        self._within, self._due = within, self._loop.time() + within
        # one timer a session, looked at again when it ends: setting one for each wait costs more than it
        if self._timer is None:
            self._set_timer()
        elif self._timer_at > self._due:
            self._timer.cancel()
            self._set_timer()
        try:
            await waiter
        finally:
            self._waiter = None

    def _set_timer(self) -> None:
        self._timer_at = self._due
        self._timer = self._loop.call_at(self._due, self._late)

    def _late(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return  # the next wait sets it
        if self._loop.time() < self._due:
            self._set_timer()
        else:
            self.fail(SessionLost("timeout", f"no reply within {self._within:g} s"))

    def owe(self, count: int = 1, settle: Callable[[Reply], None] | None = None) -> None:
        """``count`` replies are expected for what is written next."""
        for _ in range(count):
            self._owed.append(settle)
        if settle is not None:
            self._settling += count

    @property
    def paused(self) -> bool:
        """The remote does not keep up with what was written."""
        return bool(self._paused)

    @property
    def clean(self) -> bool:
        """Usable for a next mail: alive, nothing owed, nothing half read."""
        return (
            self.failure is None
            and self.is_connected
            and not (self._owed or self._replies or self._reader.pending)
        )

    def session(self) -> ssl.SSLObject:
        """The TLS session, for looking at its certificates. Raises :class:`SessionLost` without one."""
        found = self.transport.get_extra_info("ssl_object") if self.transport else None
        if found is None:
            raise SessionLost("tls", "the session is not encrypted")
        return cast(ssl.SSLObject, found)

    # --- writing ----------------------------------------------------------------------------
    def send(self, data: bytes) -> None:
        """Hand bytes to the transport. Raises :class:`SessionLost`."""
        self._usable().write(data)

    def send_parts(self, parts: list[bytes]) -> None:
        """The same for several, in one go."""
        self._usable().writelines(parts)

    def _usable(self) -> asyncio.WriteTransport:
        if self.failure is not None or self.transport is None:
            raise self.failure or SessionLost("closed", "not connected")
        return cast(asyncio.WriteTransport, self.transport)

    async def send_slices(self, data: bytes, within: float) -> bytes:
        """Write all but the last slice of a body, each ``within`` so many seconds; what is left of it, which
        ends it and may go out together with what follows."""
        self._usable()
        start = 0
        while len(data) - start > SLICE:
            self.send(data[start : start + SLICE])
            start += SLICE
            await self.drained(within)
        return data[start:] if start else data

    async def drained(self, within: float) -> None:
        """Until the remote keeps up again; at once where it does."""
        if self._paused:
            try:
                async with asyncio.timeout(within):
                    await self._drain_helper()
            except TimeoutError:
                self.fail(SessionLost("timeout", f"the remote took no bytes for {within:g} s"))
            except OSError as error:
                self.fail(SessionLost("reset", f"connection lost: {type(error).__name__}"))
        if self.failure is not None:
            raise self.failure

    # --- what aiosmtplib's dialogue (EHLO, STARTTLS, AUTH) calls -------------------------------
    async def read_response(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - aiosmtplib's signature
    ) -> SMTPResponse:
        reply = await self.reply(60.0 if timeout is None else timeout)
        if self.log is not None:
            self.log("<", reply.text)
        return SMTPResponse(reply.code, "\n".join(reply.lines))

    async def execute_command(
        self,
        *args: bytes,
        timeout: float | None = None,  # noqa: ASYNC109 - aiosmtplib's signature
    ) -> SMTPResponse:
        for arg in args:
            if COMMAND_INJECTION_REGEX.search(arg):
                raise ValueError("an SMTP command argument holds a control character")
        if self.log is not None:
            self.log(">", b" ".join(args).decode("ascii", "replace"))
        self.owe()
        self.send(b" ".join(args) + b"\r\n")
        return await self.read_response(timeout)

    async def start_tls(
        self,
        tls_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - aiosmtplib's signature
    ) -> SMTPResponse:
        response = await self.execute_command(b"STARTTLS", timeout=timeout)
        if response.code != 220:
            return response
        if self._replies or self._reader.pending:
            # plain text after the 220 was put there to be read as if encrypted (RFC 3207 4.2)
            lost = SessionLost("malformed", "bytes after the reply to STARTTLS")
            self.fail(lost)
        if self.failure is not None:
            raise self.failure
        try:
            self.transport = await self._loop.start_tls(
                cast(asyncio.WriteTransport, self.transport),
                self,
                tls_context,
                server_side=False,
                server_hostname=server_hostname,
                ssl_handshake_timeout=timeout,
            )
        except (OSError, ssl.SSLError) as error:
            lost = SessionLost("tls", tls_trouble(error))
            self.fail(lost)
            raise lost from None
        self._over_ssl = True
        return response


def tls_trouble(error: Exception) -> str:
    """Why a TLS handshake failed, in one line without addresses."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS handshake failed: {error.reason}"
    return f"TLS handshake failed: {type(error).__name__}"


class Dialogue(aiosmtplib.SMTP):
    """aiosmtplib's EHLO, HELO and AUTH over a protocol of ours that is already connected."""

    def __init__(self, protocol: PipelinedProtocol, hostname: str, ehlo: str) -> None:
        super().__init__(hostname=hostname, local_hostname=ehlo)
        self.protocol = protocol
        self.transport = protocol.transport
