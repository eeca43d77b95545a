"""The SMTP door: submission with STARTTLS and AUTH (RFC 6409, RFC 4954), on aiosmtpd.

The password is an API key. Stricter than aiosmtpd alone: bare CR or LF in a message is refused
(5.5.2, SMTP smuggling), every address passes our parser before it is taken, wrong passwords, silence,
long sessions and many connections of one address are cut off. 250 means committed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import logging
import re
import ssl
import warnings
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import structlog
from aiosmtpd.smtp import MISSING, SMTP, AuthResult

from mailweir.contracts.credential import PREFIX, ApiKey
from mailweir.contracts.submit import SubmitRequest
from mailweir.mail.address import InvalidAddress, parse
from mailweir.mail.mime_scan import has_bare_breaks
from mailweir.plumbing.apikeys import AuthFailed, KeyRing
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import DatabaseUnavailable
from mailweir.plumbing.settings import Settings, SubmissionSettings
from producer.accept import Reception, Unavailable
from producer.policy.refusal import Refusal

log = structlog.get_logger(__name__)

_REPLIES = {403: "550 5.7.1", 413: "552 5.3.4", 409: "550 5.6.0", 422: "550 5.6.0"}
_PATH = re.compile(r"<([^<>\s]*)>(?: +(.*))?")
_TOO_MANY_COMMANDS = {"*": 1000, "AUTH": 10, "EHLO": 10, "HELO": 10, "STARTTLS": 2, "NOOP": 100}


class UnsafeListener(Exception):
    """The settings would take passwords in clear from another machine."""


async def open_smtp(
    settings: Settings, reception: Reception, keys: KeyRing, clock: Clock
) -> asyncio.Server:
    """Listen. Raises :class:`UnsafeListener`, OSError (address in use, certificate unreadable)."""
    own = settings.submission
    context = tls_context(own)
    # aiosmtpd logs every address and line it sees
    for name in ("mail.log", "mail.debug"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # said once by tls_context: without a certificate the door is on loopback
    warnings.filterwarnings("ignore", "Requiring AUTH while not requiring TLS")
    loop = asyncio.get_running_loop()
    hosts: Counter[str] = Counter()

    def session() -> _Session:
        handler = _Handler(reception, keys, clock, own)
        return _Session(
            handler,
            hosts=hosts,
            limits=own,
            data_size_limit=settings.web.max_body,
            hostname=settings.smtp.hostname or settings.sender_domain,
            ident="Mailweir",
            tls_context=context,
            require_starttls=context is not None,
            auth_required=True,
            auth_require_tls=context is not None,
            timeout=own.idle,
            command_call_limit=_TOO_MANY_COMMANDS,
            loop=loop,
        )

    return await loop.create_server(session, own.host, own.port, backlog=128)


def run(
    settings: Settings,
    reception: Reception,
    keys: KeyRing,
    clock: Clock,
    stop: Callable[[], bool],
) -> None:
    """Serve until ``stop()`` is true."""

    async def serve() -> None:
        server = await open_smtp(settings, reception, keys, clock)
        async with server:
            while not stop():  # noqa: ASYNC110 - a signal handler's flag, not an event of this loop
                await asyncio.sleep(0.2)

    asyncio.run(serve())


def tls_context(settings: SubmissionSettings) -> ssl.SSLContext | None:
    """STARTTLS's context; None on loopback without a certificate. Raises :class:`UnsafeListener`."""
    if settings.certificate is None:
        host = settings.host
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            raise UnsafeListener(
                "submission.host is not loopback: set submission.certificate and submission.key"
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.certificate, settings.key)
    return context


class _Session(SMTP):  # type: ignore[misc]  # aiosmtpd has no types
    """One connection, with the caps aiosmtpd does not have."""

    def __init__(
        self, handler: _Handler, *, hosts: Counter[str], limits: SubmissionSettings, **options: Any
    ) -> None:
        super().__init__(handler, **options)
        self._hosts = hosts
        self._limits = limits
        self._host: str | None = None
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        if self._host is None:  # once, not again after STARTTLS
            self._host = str((transport.get_extra_info("peername") or ("?",))[0])
            self._hosts[self._host] += 1
            if self._hosts[self._host] > self._limits.connections:
                transport.write(b"421 4.7.0 too many connections\r\n")
                transport.close()
            self._end = self.loop.call_later(self._limits.session, self._expire)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._end is not None and self._host is not None:
            self._end.cancel()
            self._end = None
            self._hosts[self._host] -= 1
            if not self._hosts[self._host]:
                del self._hosts[self._host]
        super().connection_lost(error)

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        """``<address>`` and parameters, uninterpreted: aiosmtpd would drop a source route and go on."""
        match = _PATH.fullmatch(arg.strip())
        return (match[1], match[2] or "") if match else (None, None)

    def _expire(self) -> None:
        if self.transport is not None:
            self.transport.write(b"421 4.4.2 the session lasts too long\r\n")
            self.transport.close()


class _Handler:
    """The story of a session: who, from whom, to whom, what."""

    def __init__(
        self, reception: Reception, keys: KeyRing, clock: Clock, settings: SubmissionSettings
    ) -> None:
        self._reception = reception
        self._keys = keys
        self._clock = clock
        self._settings = settings
        self._failures = 0

    async def auth_PLAIN(self, server: Any, args: list[str]) -> AuthResult:
        """RFC 4616: ``authzid NUL login NUL password``."""
        if len(args) == 2:
            try:
                raw = base64.b64decode(args[1], validate=True)
            except (binascii.Error, ValueError):
                return await self._no(server, "501 5.5.2 not base64")
        else:
            raw = await server.challenge_auth("")
            if raw is MISSING:
                return AuthResult(success=False, handled=True)
        parts = raw.split(b"\0")
        if len(parts) != 3:
            return await self._no(server, "501 5.5.2 not authzid, login and password")
        return await self._check(server, parts[1], parts[2])

    async def auth_LOGIN(self, server: Any, args: list[str]) -> AuthResult:
        """The old two-step mechanism some programs still want."""
        login = await server.challenge_auth("Username:") if len(args) == 1 else _decoded(args[1])
        password = await server.challenge_auth("Password:") if login is not MISSING else MISSING
        if login is MISSING or password is MISSING:
            return AuthResult(success=False, handled=True)
        return await self._check(server, login, password)

    async def _check(self, server: Any, login: bytes, password: bytes) -> AuthResult:
        token = password.decode("utf-8", "replace")
        if not token.startswith(PREFIX):  # the key's id as login, its secret as password
            name = login.decode("utf-8", "replace")
            token = f"{PREFIX}{name.removeprefix(PREFIX)}.{token}"
        try:
            key = await asyncio.to_thread(self._keys.authenticate, token, self._clock.now())
        except AuthFailed:
            return await self._no(server, "535 5.7.8 the API key is not valid")
        except DatabaseUnavailable:
            await server.push("454 4.7.0 try again later")
            return AuthResult(success=False, handled=True)
        return AuthResult(success=True, auth_data=key)

    async def _no(self, server: Any, reply: str) -> AuthResult:
        """A wrong password or nonsense: counted; too many end the session."""
        self._failures += 1
        if self._failures < self._settings.auth_failures:
            await server.push(reply)
        else:
            await server.push("421 4.7.0 too many failed attempts")
            server.transport.close()
        return AuthResult(success=False, handled=True)

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        """The sender must be an address of a domain this key may use."""
        key: ApiKey = session.auth_data
        try:
            sender = parse(address)
        except InvalidAddress as error:
            return f"553 5.1.7 {error.why}"
        if not key.may_send_as(sender.domain):
            return f"550 5.7.1 this API key may not send as {sender.domain}"
        envelope.mail_from = sender.text
        envelope.mail_options.extend(options)
        return "250 2.1.0 ok"

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        """Every recipient passes the strict parser before it is taken."""
        if len(envelope.rcpt_tos) >= self._settings.max_recipients:
            return "452 4.5.3 too many recipients"
        try:
            envelope.rcpt_tos.append(parse(address).text)
        except InvalidAddress as error:
            return f"553 5.1.3 {error.why}"
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Accept, and only then answer 250."""
        raw: bytes = envelope.content
        if has_bare_breaks(raw):
            return "550 5.5.2 bare CR or LF in the message (RFC 5321 2.3.8)"
        key: ApiKey = session.auth_data
        request = SubmitRequest(
            raw=raw,
            to=tuple(envelope.rcpt_tos),
            mail_from=envelope.mail_from,
            idempotency_key=_repeat_key(raw, envelope),
        )
        try:
            accepted = await self._reception.accept_async(request, key, len(raw))
        except Refusal as r:
            return _reply(_REPLIES.get(r.status, "554 5.6.0"), r.why)
        except Unavailable as error:
            return _reply("451 4.3.0", str(error))
        return f"250 2.0.0 accepted {accepted.id}"

    async def handle_exception(self, error: Exception) -> str:
        """A defect of ours: temporary for the client, with no word of what it sent."""
        log.error("smtp_session_failed", error=type(error).__name__)
        return "451 4.3.0 internal error"


def _reply(code: str, why: str) -> str:
    """One ASCII line of at most 500 characters."""
    text = "".join(c if " " <= c <= "~" else "?" for c in why)
    return f"{code} {text}"[:500]


def _decoded(text: str) -> Any:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return MISSING


def _repeat_key(raw: bytes, envelope: Any) -> str | None:
    """A client that lost our 250 sends the very same bytes again; with a Message-ID that is one message.

    Without one two equal mails may be meant, so both are sent."""
    head = raw.partition(b"\r\n\r\n")[0].lower()
    if (
        b"\r\nmessage-id:" not in b"\r\n" + head
        or b"\r\nx-mailweir-idempotency-key:" in b"\r\n" + head
    ):
        return None
    digest = sha256(raw)
    for text in (envelope.mail_from, *sorted(envelope.rcpt_tos)):
        digest.update(b"\0" + text.encode())
    return f"smtp:{digest.hexdigest()}"
