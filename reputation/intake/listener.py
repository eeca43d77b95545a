"""Bounces and complaints by mail: an SMTP or LMTP listener for the bounce domain, and maildir and mbox readers.

Everything is answered 250 after its commit, or 451 while the database is away. Nothing is ever relayed,
bounced or answered (M16): a mail to the bounce address is the end of its way.
"""

from __future__ import annotations

import asyncio
import mailbox
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from aiosmtpd.controller import Controller
from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP

from mailweir.mail.bounce_parse import parse_report
from mailweir.plumbing.clock import REAL, Clock
from mailweir.plumbing.database import DatabaseUnavailable
from reputation.intake.record import Recorded, Recorder

MAX_MAIL = 1024 * 1024
"""Bytes of one report; returned mails are asked for as headers only (RET=HDRS)."""

MAX_RECIPIENTS = 100
_log = structlog.get_logger(__name__)


class MailIntake:
    """Turns one mail into feedback. ``keys`` are those of VERP tokens, newest first."""

    def __init__(self, recorder: Recorder, verp_keys: Sequence[bytes], clock: Clock = REAL) -> None:
        self._recorder = recorder
        self._keys = tuple(verp_keys)
        self._clock = clock

    def take(self, data: bytes, envelope_to: str | None = None) -> Recorded:
        """Record what a mail says. Raises ``DatabaseUnavailable``."""
        now = self._clock.now()
        events = parse_report(data, now=now, keys=self._keys, envelope_to=envelope_to)
        return self._recorder.record(events, data, now)


class _Handler:
    """aiosmtpd's hooks; their names are its protocol."""

    def __init__(self, intake: MailIntake) -> None:
        self._intake = intake

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if len(envelope.rcpt_tos) >= MAX_RECIPIENTS:
            return "452 4.5.3 Too many recipients"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        try:
            for address in dict.fromkeys(envelope.rcpt_tos):
                await asyncio.to_thread(self._intake.take, envelope.content, address)
        except DatabaseUnavailable as error:
            _log.warning("a report cannot be taken now", why=str(error))
            return "451 4.3.0 Try again later"
        return "250 2.0.0 Taken"


class _Smtp(Controller):  # type: ignore[misc]  # aiosmtpd ships no types
    def factory(self) -> SMTP:
        return SMTP(self.handler, data_size_limit=MAX_MAIL, enable_SMTPUTF8=True, ident="Mailweir")


class _Lmtp(Controller):  # type: ignore[misc]  # the same
    def factory(self) -> LMTP:
        return LMTP(self.handler, data_size_limit=MAX_MAIL, enable_SMTPUTF8=True, ident="Mailweir")


def listener(intake: MailIntake, host: str, port: int, *, lmtp: bool = False) -> Controller:
    """A listener in a thread of its own; ``start()`` and ``stop()`` are aiosmtpd's."""
    return (_Lmtp if lmtp else _Smtp)(_Handler(intake), hostname=host, port=port)


def drain_maildir(intake: MailIntake, path: Path) -> int:
    """Take every new mail of a maildir; taken ones move to ``cur``, marked seen. How many were taken.

    Raises ``DatabaseUnavailable``: that mail stays new. A mail taken twice changes nothing.
    """
    box = mailbox.Maildir(path, factory=None, create=False)
    taken = 0
    for key in box.keys():  # noqa: SIM118 - a mailbox is no dict
        message = box[key]
        if message.get_subdir() != "new":
            continue
        intake.take(box.get_bytes(key)[:MAX_MAIL])
        message.set_subdir("cur")
        message.add_flag("S")
        box[key] = message
        taken += 1
    return taken


def drain_mbox(intake: MailIntake, path: Path) -> int:
    """Take every mail of an mbox, which is only read. How many; raises ``DatabaseUnavailable``."""
    box = mailbox.mbox(path, factory=None, create=False)
    taken = 0
    try:
        for key in box.keys():  # noqa: SIM118
            intake.take(box.get_bytes(key)[:MAX_MAIL])
            taken += 1
    finally:
        box.close()
    return taken
