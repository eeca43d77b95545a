"""Mails over one connection, pipelined: MAIL, RCPT, DATA in one flight, and the next mail's flight
right behind the body before it, so that a mail costs one round trip (RFC 2920).

The order of a mail: the feed gives an envelope that may go (suppression asked, tokens taken); its
commands go out while it is booked as *in data*; its body follows only after MAIL, RCPT and DATA were all
accepted, it is booked and the feed says that it still may; the reply to the final dot settles it the moment it
arrives, whatever the next envelope still waits for.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from mailweir.contracts.ids import format_id
from mailweir.plumbing.settings import SmtpSettings
from workers.delivery import conversation
from workers.delivery.connection import Connection
from workers.delivery.conversation import MAX_LINE, hide, mask_address, names
from workers.delivery.owner import Booked
from workers.delivery.replies import Reply
from workers.delivery.smtp import SLICE, SessionLost
from workers.delivery.types import Envelope, Result

END = b".\r\n"
CUT = "the session was cut by us"


class Feed(Protocol):
    """Where a connection's mails come from and their results go."""

    def at_once(self) -> Envelope | None:
        """The next envelope that may go, where that needs no waiting; None: :meth:`take` knows."""
        ...

    async def take(self) -> Envelope | None:
        """The next envelope that may go, None when there is none for this connection."""
        ...

    def begins(self, envelope: Envelope) -> Booked | None:
        """Its commands go out; its body follows only when it is booked."""
        ...

    def still(self, envelope: Envelope) -> bool:
        """Whether its body may go, now that it is booked; one that may not is the owner's."""
        ...

    def unsent(self, envelope: Envelope) -> None:
        """It began, the session was cut by us, and the end of its content never went out."""
        ...

    def ended(self, result: Result) -> None:
        """The fate of an envelope taken."""
        ...


@dataclass(frozen=True, slots=True)
class Broken:
    """The session ended with this envelope unsettled: nothing of it was accepted, it may go elsewhere.

    ``behind``: its commands waited behind the body of the mail before it, whose dot got no reply; the
    session's end says nothing about this one.
    """

    envelope: Envelope
    stage: str
    lost: SessionLost
    seconds: float
    conversation: str | None
    behind: bool = False


class _Attempt:
    """One envelope on the wire."""

    __slots__ = ("begun", "booked", "dot_sent", "envelope", "number", "stage", "steps")

    def __init__(self, envelope: Envelope, begun: float, number: int) -> None:
        self.envelope = envelope
        self.booked: Booked | None = None  # the body waits for it
        self.number = number  # 1 for the first of the connection
        self.begun = begun
        self.dot_sent = False
        self.stage = "mail"
        self.steps: list[tuple[float, str, str]] = []  # loop time, direction, line as it was


class Mailer:
    """Sends envelopes over one connection until there are none or the connection has had enough."""

    def __init__(
        self, connection: Connection, settings: SmtpSettings, feed: Feed, budget: int
    ) -> None:
        self._connection = connection
        self._protocol = connection.protocol
        self._settings = settings
        self._feed = feed
        self._budget = budget
        self._clock = asyncio.get_running_loop().time
        self._chunking = connection.chunking and settings.chunking
        self._timeouts = {
            "rset": settings.mail,
            "mail": settings.mail,
            "rcpt": settings.rcpt,
            "data": settings.data,
        }
        self._out: list[bytes] = []  # written together
        self._current: _Attempt | None = None  # its commands went out, its body did not
        self._body: _Attempt | None = None  # its final dot went out, the reply has not come

    async def run(self) -> Broken | None:
        """Returns what was unsettled when the session broke, None when it ended in order.

        Cancelled, or failed by a callback: the session is closed, a mail whose dot went out is settled
        as uncertain, one whose dot did not is unsent.
        """
        try:
            await self._begin()
            while (attempt := self._current) is not None:
                if await self._agreed(attempt):
                    await self._send_body(attempt)
                self._current = None
                await self._begin()
                if self._protocol.paused:
                    await self._protocol.drained(self._settings.block)
                await self._protocol.settled(self._settings.dot)
        except SessionLost as lost:
            behind = self._abandon_body(lost)
            if self._current is not None:
                return self._broken(self._current, lost, behind)
        except BaseException:
            cut = SessionLost("closed", CUT)
            self._abandon_body(cut)
            self._protocol.fail(cut)
            if self._current is not None:
                self._feed.unsent(self._current.envelope)
            raise
        return None

    # --- one envelope -----------------------------------------------------------------------
    async def _begin(self) -> None:
        """Take the next envelope that this host can take, and write its commands, together with the body
        before it where nobody must be asked first."""
        while self._budget > 0:
            envelope = self._feed.at_once()
            if envelope is None:
                self._flush()
                envelope = await self._feed.take()
                if envelope is None:
                    return
            self._budget -= 1
            attempt = _Attempt(envelope, self._clock(), self._connection.mails + 1)
            problem = self._cannot(envelope)
            if problem is not None:
                self._settle(attempt, *problem)
                continue
            self._current = attempt
            self._connection.mails += 1
            attempt.booked = self._feed.begins(envelope)
            if self._connection.pipelining:
                self._add_flight(attempt)
            self._flush()
            if not self._connection.pipelining:
                await self._protocol.settled(self._settings.dot)
            return
        self._flush()

    def _flush(self) -> None:
        if self._out:
            parts, self._out = self._out, []
            self._protocol.send_parts(parts)

    def _cannot(self, envelope: Envelope) -> tuple[int, str] | None:
        """Code and text of a refusal of our own: what the host said it cannot take, not even tried."""
        connection = self._connection
        if connection.size and len(envelope.data) > connection.size:
            return 552, (
                f"552 5.3.4 message of {len(envelope.data)} bytes is larger than"
                f" {connection.dial.hop.host} takes ({connection.size})"
            )
        if envelope.smtputf8 and not connection.smtputf8:
            return 550, f"550 5.6.7 {connection.dial.hop.host} does not offer SMTPUTF8"
        if not envelope.ascii and not connection.eightbit:
            return 554, f"554 5.6.3 {connection.dial.hop.host} does not offer 8BITMIME"
        return None

    def _commands(self, envelope: Envelope) -> tuple[str, str]:
        connection = self._connection
        options = ""
        if connection.size is not None:
            options = f" SIZE={len(envelope.data)}"
        if not envelope.ascii:
            options += " BODY=8BITMIME"
        if envelope.smtputf8:
            options += " SMTPUTF8"
        if connection.dsn:
            # RFC 3461: a report names our job even where the address was rewritten on the way
            options += f" RET=HDRS ENVID={format_id(envelope.job_id)}"
        return f"MAIL FROM:<{envelope.mail_from}>{options}", f"RCPT TO:<{envelope.rcpt}>"

    def _add_flight(self, attempt: _Attempt) -> None:
        mail, rcpt = self._commands(attempt.envelope)
        reset = self._connection.need_rset
        self._connection.need_rset = False
        data = "" if self._chunking else "DATA\r\n"
        flight = f"{mail}\r\n{rcpt}\r\n{data}".encode()
        self._protocol.owe(3 + reset - self._chunking)
        self._out.append(b"RSET\r\n" + flight if reset else flight)
        now = attempt.begun
        if reset:
            attempt.stage = "rset"
            attempt.steps.append((now, ">", "RSET"))
        attempt.steps += (
            (now, ">", mail),
            (now, ">", f"RCPT TO:<{mask_address(attempt.envelope.rcpt)}>"),
        )
        if data:
            attempt.steps.append((now, ">", "DATA"))

    async def _agreed(self, attempt: _Attempt) -> bool:
        """MAIL, RCPT and DATA accepted, and the mail booked: the body may go. Else the envelope is
        settled."""
        if not self._connection.pipelining:
            agreed = await self._agreed_step_by_step(attempt)
        else:
            agreed = await self._agreed_in_flight(attempt)
        if agreed and attempt.booked is not None and not attempt.booked.done:
            await attempt.booked.wait()
        if agreed and not self._feed.still(attempt.envelope):
            self._current = None
            cut = SessionLost("closed", CUT)  # after a 354 only a content can be said
            self._protocol.fail(cut)
            raise cut
        return agreed

    async def _agreed_in_flight(self, attempt: _Attempt) -> bool:
        if attempt.stage == "rset":
            await self._answer(attempt, "rset")
        mail = await self._answer(attempt, "mail")
        rcpt = await self._answer(attempt, "rcpt")
        accepted = mail.code < 300 and rcpt.code < 300
        refusal = mail if mail.code >= 300 else rcpt
        refused_at = "mail" if mail.code >= 300 else "rcpt"
        open_transaction = mail.code < 300
        if not self._chunking:
            data = await self._answer(attempt, "data")
            if data.code == 354 and not accepted:
                # RFC 2920 3.1: it opened its ears with nobody to hear; a lone dot ends that
                self._protocol.owe()
                self._protocol.send(END)
                await self._protocol.reply(self._settings.dot)
                open_transaction = False
            elif accepted and data.code != 354:
                accepted, refusal, refused_at = False, data, "data"
        if not accepted:
            self._connection.need_rset = open_transaction
            self._settle(attempt, refusal.code, refusal.text, refused_at)
        return accepted

    async def _agreed_step_by_step(self, attempt: _Attempt) -> bool:
        """The same without PIPELINING: nothing is sent before its turn."""
        mail, rcpt = self._commands(attempt.envelope)
        shown = f"RCPT TO:<{mask_address(attempt.envelope.rcpt)}>"
        steps = [("mail", mail, mail), ("rcpt", rcpt, shown)]
        if self._connection.need_rset:
            self._connection.need_rset = False
            steps.insert(0, ("rset", "RSET", "RSET"))
        if not self._chunking:
            steps.append(("data", "DATA", "DATA"))
        for stage, command, shown in steps:
            self._protocol.owe()
            self._protocol.send(f"{command}\r\n".encode())
            self._note(attempt, ">", shown)
            reply = await self._answer(attempt, stage)
            if reply.code >= 400:
                self._connection.need_rset = stage != "mail"
                self._settle(attempt, reply.code, reply.text, stage)
                return False
        return True

    async def _answer(self, attempt: _Attempt, stage: str) -> Reply:
        """The reply to a command, refused where no server may say such a thing there."""
        attempt.stage = stage
        reply = self._protocol.reply_at_once() or await self._protocol.reply(self._timeouts[stage])
        attempt.steps.append((self._clock(), "<", reply.text))
        code = reply.code
        if code == 354 if stage == "data" else code < 300:
            if code != 221:
                return reply
            raise SessionLost("closed", reply.text, reply)
        if code == 421:
            raise SessionLost("closed", reply.text, reply)
        if stage == "rset" and code >= 400:
            raise SessionLost("closed", f"RSET refused: {reply.text}")  # a fresh session then
        if code < 400:
            lost = SessionLost("malformed", f"unexpected reply at {stage}: {reply.text}")
            self._protocol.fail(lost)
            raise lost
        return reply

    async def _send_body(self, attempt: _Attempt) -> None:
        """Write a body but for its end, which goes out with what follows."""
        attempt.stage = "dot"
        envelope = attempt.envelope
        if self._chunking:
            size = len(envelope.data)
            self._out.append(b"BDAT %d LAST\r\n" % size)
            body, shown = envelope.data, f"BDAT {size} LAST"
        else:
            body = envelope.stuffed()
            shown = f"({len(body)} bytes) ."
        self._note(attempt, ">", shown)
        if len(body) > SLICE:
            self._flush()
        rest = await self._protocol.send_slices(body, self._settings.block)
        # from here on it may be out, since its end is written before anybody waits again
        attempt.dot_sent = True
        self._body, self._current = attempt, None
        self._protocol.owe(settle=self._on_dot)
        self._out.append(rest)
        if not self._chunking:
            self._out.append(END)

    def _on_dot(self, reply: Reply) -> None:
        attempt, self._body = self._body, None
        if attempt is None:
            return
        if 300 <= reply.code < 400:
            self._lost_result(attempt, SessionLost("malformed", f"unexpected: {reply.text}"))
            self._protocol.fail(SessionLost("malformed", "unexpected reply to the final dot"))
            return
        self._note(attempt, "<", reply.text)
        self._settle(attempt, reply.code, reply.text, "dot")
        if reply.code == 421:  # it closes now (RFC 5321 3.8); nothing more goes over this session
            self._protocol.fail(SessionLost("closed", reply.text, reply))

    # --- results ----------------------------------------------------------------------------
    def _note(self, attempt: _Attempt, direction: str, text: str) -> None:
        attempt.steps.append((self._clock(), direction, text))

    def _tell(self, attempt: _Attempt) -> str | None:
        if not self._settings.conversation:
            return None
        connection, begun, rcpt = self._connection, attempt.begun, attempt.envelope.rcpt
        said = [text for _, way, text in attempt.steps if way == "<"]
        steps = [
            (round((at - begun) * 1000), way, text[:MAX_LINE]) for at, way, text in attempt.steps
        ]
        if names("\n".join(said), rcpt):
            steps = [(at, w, hide(text, rcpt) if w == "<" else text) for at, w, text in steps]
        if attempt.number == 1:
            steps = connection.handshake.steps + steps
        return conversation.encode(connection.name, connection.tls, attempt.number, steps)

    def _settle(
        self,
        attempt: _Attempt,
        code: int | None,
        reply: str,
        stage: str = "mail",
        error: str | None = None,
    ) -> None:
        connection = self._connection
        self._feed.ended(
            Result(
                attempt.envelope.job_id,
                stage,
                code,
                hide(reply, attempt.envelope.rcpt)[: self._settings.reply_kept],
                connection.name,
                self._clock() - attempt.begun,
                attempt.dot_sent,
                error,
                connection.tls,
                self._tell(attempt),
            )
        )

    def _lost_result(self, attempt: _Attempt, lost: SessionLost) -> None:
        self._note(attempt, "!", lost.detail)
        self._settle(attempt, None, lost.detail, "dot", lost.kind)

    def _abandon_body(self, lost: SessionLost) -> bool:
        """The mail whose dot went out and has no reply: uncertain. False where there is none."""
        attempt, self._body = self._body, None
        if attempt is not None:
            self._lost_result(attempt, lost)
        return attempt is not None

    def _broken(self, attempt: _Attempt, lost: SessionLost, behind: bool) -> Broken:
        self._note(attempt, "!", hide(lost.detail, attempt.envelope.rcpt))
        stage = "data" if attempt.stage == "dot" else attempt.stage
        stage = "mail" if stage == "rset" else stage
        seconds = self._clock() - attempt.begun
        return Broken(attempt.envelope, stage, lost, seconds, self._tell(attempt), behind)
