"""Addresses: one strict parser, and one key under which an address is known everywhere.

Accepted is ``dot-atom@domain`` with an IDNA 2008 domain of at least two labels. Quoted local parts,
comments, routes, address literals, groups, encoded words and non-ASCII local parts are refused: each
has carried an attack somewhere (RFC 5321 4.1.2, RFC 5322 3.4.1; "Splitting the email atom"). The
parsed value is what routing, suppression, envelope and headers use, so that none reads it otherwise.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

import idna

MAX_LOCAL = 64  # octets, RFC 5321 4.5.3.1.1
MAX_DOMAIN = 253  # octets, RFC 1035 2.3.4 in text form
MAX_ADDRESS = 254  # octets, RFC 5321 4.5.3.1.3 without the angle brackets

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_LOCAL = re.compile(rf"{_ATEXT}(?:\.{_ATEXT})*\Z")
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})+\Z")
_PLAIN = re.compile(rf"({_ATEXT}(?:\.{_ATEXT})*)@({_LABEL}(?:\.{_LABEL})+)\.?\Z")


class InvalidAddress(ValueError):
    """The text is no address we mail; ``why`` says what is wrong without repeating the address."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Address(NamedTuple):
    """A parsed address: local part as given, domain as lower-case A-label, both as ``text``."""

    local: str
    domain: str
    text: str


class Mailbox(NamedTuple):
    """An address with the name shown beside it (``Acme <hi@acme.test>``)."""

    name: str
    address: Address


def parse(text: str) -> Address:
    """The address in ``text``, nothing around it. Raises :class:`InvalidAddress`."""
    match = _PLAIN.match(text)
    if match is None:
        return _parse_slowly(text)
    local, domain = match[1], match[2].lower()
    if "--" in domain:
        domain = _check_ace(domain)
    return _finish(local, domain)


def canonical(text: str) -> str:
    """The one key of an address for suppression, search and limits: all lower case, A-label domain.

    Dots and plus tags stay: only the owner of the domain knows what they mean. Raises
    :class:`InvalidAddress`.
    """
    return parse(text).text.lower()


def parse_domain(text: str) -> str:
    """A domain of at least two labels as lower-case A-label. Raises :class:`InvalidAddress`."""
    text = text.removesuffix(".")
    if _DOMAIN.match(text):
        domain = text.lower()
        domain = _check_ace(domain) if "--" in domain else domain
    else:
        domain = _encode_domain(text)
    return _check_domain(domain)


def parse_mailbox(text: str) -> Mailbox:
    """``a@b.c``, ``Name <a@b.c>`` or ``"Name, X." <a@b.c>``. Raises :class:`InvalidAddress`."""
    text = text.strip(" \t")
    if not text.endswith(">"):
        return Mailbox("", parse(text))
    name, bracket, inner = text[:-1].rpartition("<")
    if not bracket:
        raise InvalidAddress("there is a '>' without its '<'")
    name = name.strip(" \t")
    if len(name) >= 2 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    elif re.search(r'[<>"@,;:\\]', name):
        raise InvalidAddress("the name before '<' needs double quotes around it")
    return Mailbox(name, parse(inner))


def split_mailboxes(value: str) -> list[str]:
    """The members of an unfolded address header, cut at the commas that separate them.

    Comments become blanks, so that what is left of ``user@good.com(x)evil.com`` is no address.
    Groups are refused, except the empty one (``undisclosed-recipients:;``). One pass, linear time.
    Raises :class:`InvalidAddress`.
    """
    items: list[str] = []
    current: list[str] = []
    depth = 0
    quoted = escaped = False
    for char in value:
        if escaped:
            escaped = False
        elif char == "\\" and (quoted or depth):
            escaped = True
        elif quoted:
            quoted = char != '"'
        elif char == "(":
            depth += 1
            current.append(" ")
            continue
        elif char == ")" and depth:
            depth -= 1
            continue
        elif depth:
            continue
        elif char == '"':
            quoted = True
        elif char == ",":
            items.append("".join(current))
            current = []
            continue
        if not depth:
            current.append(char)
    if quoted or depth:
        raise InvalidAddress("a quote or comment does not end")
    items.append("".join(current))
    found = [item.strip() for item in items if item.strip()]
    return [item for item in found if not re.fullmatch(r"[^:;<>@]*:\s*;", item)]


def mixed_script(domain: str) -> bool:
    """Whether a label mixes letters of several scripts (Latin with Cyrillic): shown, not refused."""
    if "xn--" not in domain:
        return False
    for label in domain.split("."):
        if not label.startswith("xn--"):
            continue
        scripts = {
            unicodedata.name(c, "?").split(" ")[0] for c in idna.ulabel(label) if c.isalpha()
        }
        scripts = {"CJK" if s in ("HIRAGANA", "KATAKANA", "HANGUL") else s for s in scripts}
        if len(scripts) > 1 and not scripts <= {"CJK", "LATIN"}:
            return True
    return False


def _parse_slowly(text: str) -> Address:
    """Everything the fast pattern does not know: other scripts, and the reason of a refusal."""
    if not text:
        raise InvalidAddress("the address is empty")
    for char in text:
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs"):
            raise InvalidAddress(
                f"U+{ord(char):04X} (space, control or invisible character) is not allowed"
            )
    local, at, domain = text.rpartition("@")
    if not at:
        raise InvalidAddress("there is no '@'")
    if not local:
        raise InvalidAddress("nothing stands before the '@'")
    if not local.isascii():
        raise InvalidAddress("the part before the '@' has characters that need SMTPUTF8")
    if not _LOCAL.match(local):
        raise InvalidAddress("the part before the '@' is not letters, digits and atoms with dots")
    return _finish(local, parse_domain(domain))


def _finish(local: str, domain: str) -> Address:
    if len(local) > MAX_LOCAL:
        raise InvalidAddress(f"the part before the '@' is longer than {MAX_LOCAL} characters")
    if "=?" in local or "?=" in local:
        raise InvalidAddress("an encoded word is no local part")
    domain = _check_domain(domain)
    if len(local) + 1 + len(domain) > MAX_ADDRESS:
        raise InvalidAddress(f"the address is longer than {MAX_ADDRESS} characters")
    return Address(local, domain, f"{local}@{domain}")


def _check_domain(domain: str) -> str:
    if len(domain) > MAX_DOMAIN:
        raise InvalidAddress(f"the domain is longer than {MAX_DOMAIN} characters")
    if domain.rpartition(".")[2].isdigit():
        raise InvalidAddress("the domain ends in a number: IP addresses are not mailed")
    return domain


def _check_ace(domain: str) -> str:
    """Labels with ``--`` at 3 and 4 are reserved for A-labels, which must decode and be valid."""
    for label in domain.split("."):
        if label[2:4] == "--":
            try:
                idna.ulabel(label)
            except idna.IDNAError:
                raise InvalidAddress("a label of the domain is no valid A-label") from None
    return domain


def _encode_domain(domain: str) -> str:
    if not domain:
        raise InvalidAddress("nothing stands after the '@'")
    if domain.startswith("["):
        raise InvalidAddress("address literals are not mailed")
    if domain.isascii():
        if "." not in domain:
            raise InvalidAddress("the domain has no dot")
        raise InvalidAddress(
            "a label of the domain is empty, too long or has a forbidden character"
        )
    if re.search("[。．｡]", domain):
        raise InvalidAddress("the domain has a dot of another script")
    try:
        encoded = idna.encode(unicodedata.normalize("NFC", domain.lower()), strict=True)
    except (idna.IDNAError, UnicodeError):
        raise InvalidAddress("the domain is not valid by IDNA 2008") from None
    text = encoded.decode("ascii")
    if not _DOMAIN.match(text):
        raise InvalidAddress("the domain has no dot or a forbidden character")
    return text
