"""One open SMTP connection: dialled from the source's address, greeted, encrypted, authenticated."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from dataclasses import dataclass, field

from aiosmtplib.errors import SMTPException, SMTPResponseException

from mailweir.contracts.policy import Auth
from mailweir.plumbing.secrets import Secrets, SecretUnavailable
from mailweir.plumbing.settings import SmtpSettings
from workers.delivery import dane
from workers.delivery.conversation import Handshake
from workers.delivery.proxy import ProxyFailed, parse_proxy, through
from workers.delivery.smtp import Dialogue, PipelinedProtocol, SessionLost, tls_trouble
from workers.delivery.tls import client_context
from workers.delivery.types import Hop, TlsMode

MAX_KEYWORDS = 100  # EHLO lines read; more are ignored


class ConnectFailed(Exception):
    """No usable session with this hop; the fields are those of a ``Result``."""

    def __init__(
        self, stage: str, error: str | None, reply: str, code: int | None, handshake: Handshake
    ) -> None:
        super().__init__(f"{stage}: {error or code}")
        self.stage = stage
        self.error = error
        self.reply = reply
        self.code = code
        self.handshake = handshake


@dataclass(frozen=True, slots=True)
class Dial:
    """How to reach one hop; equal dials may share a connection, unequal ones never do."""

    source: str  # name: another source is another sender, even from the same address
    hop: Hop
    tls: TlsMode
    ca_file: str | None = None
    bind: str | None = None  # local IP
    ehlo: str = "localhost"
    auth: Auth | None = None
    proxy: str | None = None


@dataclass(slots=True)
class Connection:
    """An open session and what its EHLO offered."""

    dial: Dial
    protocol: PipelinedProtocol
    handshake: Handshake
    tls: bool = False
    pipelining: bool = False
    chunking: bool = False
    eightbit: bool = False
    smtputf8: bool = False
    dsn: bool = False
    size: int | None = None  # largest message taken; None: not said (SIZE not offered)
    mails: int = 0  # transactions begun
    need_rset: bool = False
    idle: asyncio.TimerHandle | None = field(default=None, repr=False)
    name: str = field(init=False)  # ``host:port`` for journals

    def __post_init__(self) -> None:
        self.name = f"{self.dial.hop.host}:{self.dial.hop.port}"

    def learn(self, extensions: dict[str, str]) -> None:
        """Take the offer of an EHLO reply (keywords lower-case)."""
        offer = dict(list(extensions.items())[:MAX_KEYWORDS])
        self.pipelining = "pipelining" in offer
        self.chunking = "chunking" in offer
        self.eightbit = "8bitmime" in offer
        self.smtputf8 = "smtputf8" in offer
        self.dsn = "dsn" in offer
        self.size = None
        if "size" in offer:
            text = offer["size"].strip()
            self.size = int(text) if text.isascii() and text.isdigit() else 0

    def say_goodbye(self) -> None:
        """QUIT without waiting for the answer, and close."""
        if self.protocol.clean and self.protocol.transport is not None:
            self.protocol.owe()
            self.protocol.send(b"QUIT\r\n")
            self.protocol.transport.close()
        else:
            self.protocol.fail(SessionLost("closed", "closed by us"))

    async def quit(self, within: float) -> None:
        """Say goodbye and close; a remote that does not answer is not waited for long."""
        if self.protocol.clean:
            try:
                self.protocol.owe()
                self.protocol.send(b"QUIT\r\n")
                await self.protocol.reply(within)
            except SessionLost:
                pass  # it hung up first: what we wanted
        self.protocol.fail(SessionLost("closed", "closed by us"))


def is_private(address: str) -> bool:
    """Loopback, private, link-local, shared (CGNAT) or otherwise not on the public internet."""
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    return not (mapped or ip).is_global


def literal(host: str) -> str | None:
    """The host itself where it is an IP address: no lookup then."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


async def dial(
    to: Dial, settings: SmtpSettings, secrets: Secrets, *, refresh_secret: bool = False
) -> Connection:
    """Open, greet, encrypt, log in. Raises :class:`ConnectFailed`.

    ``refresh_secret`` fetches the password anew (after a 535). A failed handshake under the
    opportunistic policy is not repaired here: the caller dials again without TLS.
    """
    loop = asyncio.get_running_loop()
    handshake = Handshake(loop.time())
    stage = "connect"

    def log(direction: str, text: str) -> None:
        handshake.add(loop.time(), direction, text)

    protocol: PipelinedProtocol | None = None
    try:
        sock, peer = await _reach(to, settings)
        protocol = PipelinedProtocol(loop, settings.max_reply)
        implicit = to.hop.implicit_tls
        context = client_context(to.tls, to.ca_file) if implicit else None
        stage = "starttls" if implicit else "banner"
        made = protocol
        await loop.create_connection(
            lambda: made,
            sock=sock,
            ssl=context,
            server_hostname=to.hop.host if implicit else None,
            ssl_handshake_timeout=settings.helo if implicit else None,
        )
        protocol.log = log
        connection = Connection(to, protocol, handshake, tls=implicit)
        stage = "banner"
        greeting = await protocol.read_response(settings.banner)
        if greeting.code != 220:
            raise SMTPResponseException(greeting.code, greeting.message)
        stage = "ehlo"
        dialogue = await _hello(connection, to, settings)
        if not implicit and _wants_tls(to, dialogue):
            stage = "starttls"
            answer = await protocol.start_tls(
                client_context(to.tls, to.ca_file), to.hop.host, settings.helo
            )
            if answer.code == 220:
                if to.tls is TlsMode.DANE:
                    dane.check(protocol.session(), to.hop.tlsa or (), to.hop.host)
                connection.tls = True
                stage = "ehlo"
                dialogue = await _hello(connection, to, settings)
            elif answer.code < 400:
                raise SessionLost("malformed", f"{answer.code} is no answer to STARTTLS")
            elif to.tls is not TlsMode.OPPORTUNISTIC:
                raise SMTPResponseException(answer.code, answer.message)
        if to.auth is not None:
            stage = "auth"
            await _log_in(dialogue, connection, to.auth, peer, settings, secrets, refresh_secret)
        if protocol.failure is not None:
            raise protocol.failure  # more came than we asked for
        protocol.log = None
        return connection
    except SessionLost as lost:
        error: str | None = lost.kind
        code = lost.reply.code if lost.reply else None
        reply = lost.reply.text if lost.reply else lost.detail
        if lost.reply is not None and lost.kind == "closed":
            error = None
        if lost.kind == "tls":
            stage = "starttls"
    except SMTPResponseException as refused:
        error = None
        code, reply = refused.code, f"{refused.code} {' '.join(refused.message.splitlines())}"
        if refused.code < 400:
            error, reply = "malformed", f"unexpected reply at {stage}: {reply}"
    except _Refused as why:
        error, code, reply = why.error, None, why.text
    except (OSError, ssl.SSLError, TimeoutError) as trouble:
        error, code, reply = _word(trouble, stage)
    except (SMTPException, SecretUnavailable, ValueError) as trouble:
        error, code, reply = "auth" if stage == "auth" else "malformed", None, str(trouble)
    log("!", reply)
    if protocol is not None:
        protocol.fail(SessionLost("closed", "closed by us"))
    raise ConnectFailed(stage, error, reply, code, handshake)


class _Refused(Exception):
    """We refuse this hop ourselves."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(text)
        self.error = error
        self.text = text


def _word(trouble: Exception, stage: str) -> tuple[str, None, str]:
    """A network error as a word of ``Result.error`` and a line of text."""
    if isinstance(trouble, ssl.SSLError) or stage == "starttls":
        return "tls", None, tls_trouble(trouble)
    if isinstance(trouble, TimeoutError):
        return "timeout", None, "no connection in time"
    if isinstance(trouble, ConnectionRefusedError):
        return "refused", None, "connection refused"
    if isinstance(trouble, ConnectionError):
        return "reset", None, f"connection lost: {type(trouble).__name__}"
    if isinstance(trouble, ProxyFailed):
        return "proxy", None, str(trouble)
    if isinstance(trouble, socket.gaierror):
        return "dns", None, "the host name has no address"
    return "unreachable", None, f"cannot connect: {getattr(trouble, 'strerror', None) or trouble}"


async def _reach(to: Dial, settings: SmtpSettings) -> tuple[socket.socket, str]:
    """A connected socket from the source's address, and the peer's IP."""
    loop = asyncio.get_running_loop()
    family = socket.AF_UNSPEC
    if to.bind is not None:
        family = socket.AF_INET6 if ":" in to.bind else socket.AF_INET
    async with asyncio.timeout(settings.connect):
        peer = to.hop.address or literal(to.hop.host)
        if peer is None:
            infos = await loop.getaddrinfo(
                to.hop.host, to.hop.port, family=family, type=socket.SOCK_STREAM
            )
            peer = str(infos[0][4][0])
        if is_private(peer) and not (to.hop.trusted or settings.allow_private):
            raise _Refused("private", f"{to.hop.host} is at a private address ({peer})")
        if to.proxy is None:
            return await _open(peer, to.hop.port, to.bind), peer
        scheme, host, port = parse_proxy(to.proxy)
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        sock = await _open(str(infos[0][4][0]), port, None)
        try:
            await through(sock, scheme, to.bind, peer, to.hop.port)
        except BaseException:
            sock.close()
            raise
        return sock, peer


async def _open(address: str, port: int, bind: str | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if bind is not None:
            sock.bind((bind, 0))
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _hello(connection: Connection, to: Dial, settings: SmtpSettings) -> Dialogue:
    """EHLO, or HELO where EHLO is not known (RFC 5321 3.2)."""
    dialogue = Dialogue(connection.protocol, to.hop.host, to.ehlo)
    try:
        await dialogue.ehlo(timeout=settings.helo)
    except SMTPResponseException as refused:
        if refused.code not in (500, 502, 504, 550):
            raise
        await dialogue.helo(timeout=settings.helo)
    connection.learn(dialogue.esmtp_extensions)
    return dialogue


def _wants_tls(to: Dial, dialogue: Dialogue) -> bool:
    if to.tls is TlsMode.NONE:
        return False
    if dialogue.supports_extension("starttls"):
        return True
    if to.tls is not TlsMode.OPPORTUNISTIC:
        says = "the domain's MTA-STS policy" if to.hop.verified else "the policy"
        raise SessionLost("tls", f"STARTTLS is not offered and {says} says {to.tls.value}")
    return False


async def _log_in(
    dialogue: Dialogue,
    connection: Connection,
    auth: Auth,
    peer: str,
    settings: SmtpSettings,
    secrets: Secrets,
    refresh: bool,
) -> None:
    """AUTH by the best mechanism both sides know; a readable password only inside TLS (S4)."""
    offered = dialogue.server_auth_methods
    order = ("plain", "login", "cram-md5") if connection.tls else ("cram-md5", "plain", "login")
    wanted = order if auth.mechanism == "auto" else (auth.mechanism,)
    chosen = next((m for m in wanted if m in offered), None)
    if chosen is None:
        raise _Refused("auth", f"the remote offers none of {', '.join(wanted)}")
    loopback = ipaddress.ip_address(peer).is_loopback
    if chosen != "cram-md5" and not connection.tls and not loopback:
        raise _Refused("auth", f"AUTH {chosen.upper()} would show the password: no TLS")
    fetch = secrets.refresh if refresh else secrets.get
    secret = await asyncio.to_thread(fetch, auth.secret)
    method = {
        "plain": dialogue.auth_plain,
        "login": dialogue.auth_login,
        "cram-md5": dialogue.auth_crammd5,
        "xoauth2": dialogue.auth_xoauth2,
    }[chosen]
    await method(auth.username, secret, timeout=settings.helo)
