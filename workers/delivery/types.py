"""What goes into the transport and what comes back: envelope, hop, destination, result."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import msgspec

# RFC 5321 4.1.2 without quoted local parts: nothing here can end or split an SMTP command (S2).
_PATH = re.compile(r"[^\x00-\x20\x7f<>]{0,512}")


def _line_ends(data: bytes) -> str | tuple[str, ...] | None:
    """The kinds of line end in ``data``: one, several or none of CR, LF and CRLF. The standard library's
    decoder notes them in one pass, 4 us in 10 KiB; two searches by ``re`` take 15, two counts 10."""
    decoder = io.IncrementalNewlineDecoder(None, translate=False)
    decoder.decode(data.decode("latin-1"), final=True)
    return decoder.newlines


class TlsMode(StrEnum):
    """TLS policy of one connection."""

    NONE = "none"  # plain text even where STARTTLS is offered
    OPPORTUNISTIC = "opportunistic"  # encrypted where it works, plain text where not (RFC 7435)
    REQUIRED = "required"  # encrypted or not at all; the certificate is not checked
    VERIFIED = "verified"  # encrypted, and the certificate names the host we dialled
    DANE = "dane"  # encrypted, and a TLSA record vouches for the certificate; asked for by DNS only


class Tlsa(NamedTuple):
    """One TLSA record (RFC 6698 2.1)."""

    usage: int
    selector: int
    matching: int
    data: bytes


@dataclass(slots=True)
class Envelope:
    """One mail for one recipient. ``data`` is what was signed: CRLF line ends, not dot-stuffed.

    Raises :class:`ValueError` for bytes or paths that must never reach a wire: a bare CR or LF makes
    two mails of one at some receivers (SMTP smuggling), a control character in a path two commands.
    """

    job_id: int
    mail_from: str
    rcpt: str
    data: bytes
    smtputf8: bool = False
    ascii: bool = field(init=False)  # no byte above 127: no 8BITMIME needed
    dots: bool = field(init=False)  # a line after the first begins with a dot

    def __post_init__(self) -> None:
        data = self.data
        if not data.endswith(b"\r\n") or _line_ends(data) != "\r\n":
            raise ValueError("message bytes must have CRLF line ends only, also at the end")
        self.dots = b"\r\n." in data
        for name, path in (("mail_from", self.mail_from), ("rcpt", self.rcpt)):
            if _PATH.fullmatch(path) is None:
                raise ValueError(f"{name} holds a character no SMTP path may hold")
        if not self.rcpt:
            raise ValueError("rcpt is empty")
        self.ascii = data.isascii()
        if not (self.mail_from.isascii() and self.rcpt.isascii()):
            self.smtputf8 = True

    def stuffed(self) -> bytes:
        """The bytes after DATA, dots doubled at line starts (RFC 5321 4.5.2), without the final dot."""
        data = self.data
        if self.dots:
            data = data.replace(b"\r\n.", b"\r\n..")
        if data.startswith(b"."):
            data = b"." + data
        return data


@dataclass(frozen=True, slots=True)
class Hop:
    """One address mail can be handed to."""

    host: str  # the name: TLS is checked against it, journals show it
    port: int = 25
    address: str | None = None  # IP; None: the system resolves ``host``
    implicit_tls: bool = False  # TLS from the first byte (port 465)
    trusted: bool = False  # named by the operator (MX map, relay): may be a private address
    verified: bool = False  # the domain's MTA-STS policy is enforced for this host (RFC 8461)
    tlsa: tuple[Tlsa, ...] | None = None  # usable DANE records; empty: there are only unusable ones

    def tls(self, policy: TlsMode) -> TlsMode:
        """How a connection to this host is encrypted where ours says ``policy``. DANE comes before
        MTA-STS (RFC 8461 2), both before us: what a domain demands is never less than we ask for,
        and where a TLSA record vouches for a host no public CA need do so too."""
        if self.tlsa:
            return TlsMode.DANE
        if self.verified or policy is TlsMode.VERIFIED:
            return TlsMode.VERIFIED
        return policy if self.tlsa is None else TlsMode.REQUIRED  # RFC 7672 2.2, unusable records


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a domain's mail goes: its site (limits), its provider (policy), its hops in order."""

    site: str
    provider: str
    hosts: tuple[Hop, ...]
    # What the domain demands of our TLS. Domains of one site may differ in it (MTA-STS is a domain's own),
    # and mail of one must never go by the demands of another.
    demands: frozenset[tuple[str, bool, tuple[Tlsa, ...] | None]] = field(init=False)

    def __post_init__(self) -> None:
        wanted = (
            (hop.host, hop.verified, hop.tlsa)
            for hop in self.hosts
            if hop.verified or hop.tlsa is not None
        )
        object.__setattr__(self, "demands", frozenset(wanted))


class Result(msgspec.Struct, frozen=True, gc=False):
    """How one attempt ended. Accepted is ``code // 100 == 2 and stage == "dot"``, nothing else.

    ``stage``: dns, connect, banner, ehlo, starttls, auth, mail, rcpt, data, dot (HTTP APIs: dot).
    ``error`` is None where the remote's reply decided; else one word: timeout, refused, unreachable,
    reset, closed, tls, malformed, auth, private, proxy, dns. ``dot_sent`` and no reply: uncertain (N41).
    """

    job_id: int
    stage: str
    code: int | None
    reply: str  # the remote's words (or ours, where error is set), recipient masked
    host: str
    seconds: float  # real seconds this attempt's conversation took
    dot_sent: bool = False
    error: str | None = None
    tls: bool = False
    conversation: str | None = None  # compact JSON, see conversation.py
    retry_after: float | None = None  # seconds, from an HTTP API's Retry-After
    layer: str | None = None  # "connection": an earlier MX host failed, this one was the next (S35)

    @property
    def accepted(self) -> bool:
        """The remote took responsibility: 2yz to the final dot."""
        return self.stage == "dot" and self.code is not None and self.code // 100 == 2

    @property
    def uncertain(self) -> bool:
        """The final dot went out and no reply came back (RFC 1047)."""
        return self.dot_sent and self.code is None
