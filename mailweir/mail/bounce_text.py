"""Bounces written for people: qmail, Exim, sendmail, Exchange before 2007, Domino, Yahoo, Gmail, Courier,
MDaemon, IMail, GroupWise and whoever else never heard of RFC 3464.

One reader for all: cut off the copy of the original, take the addresses that begin a line or stand in a
sentence of failure, and give each the words that follow it. flufl.bounce is asked where that finds nobody.
"""

from __future__ import annotations

import re

from mailweir.mail.bounce_mail import BounceMail, addresses
from mailweir.mail.bounce_signs import CODED, FAILURE, NOBODY, is_delay
from mailweir.mail.bounce_words import report_text
from mailweir.mail.dsn import Failed

MAX_FOUND = 50
MAX_STARTS = 200

_ADDRESS = re.compile(
    r"(?<![\w.+\-/])[\w.!#$%&*+/=?^{|}~\-][\w.!#$%&'*+/=?^`{|}~\-]{0,99}@[\w.\-]{1,200}\.[a-z0-9\-]{2,24}(?![\w@])",
    re.IGNORECASE,
)
_LINE = re.compile(
    r"^[\s>*\-|•]*(?:(?:<b>)?(?:failed (?:address|recipient)|recipient|to|for|user|address|"
    r"unknown user|no such user|mail to|"
    r"undeliverable to|undeliverable address|rcpt to|invalid (?:recipient|address|user)|"
    r"final recipient|e-?mail|addressee|"
    r"user mailbox exceeds allowed size|mailbox full|receiver not found|收件人|destinataire|"
    r"destinatario|empf[äa]nger|"
    r"получатель|odbiorca|宛先)s?(?:</b>)?(?:\s*[:=：]\s*|\s+(?:[\-:=]\s*)?|(?=[<\[(\"'`])))?"
    r"[<\[(\"'`]{0,2}(?:mailto:|smtp:|c=[^@]{0,200}dda:smtp=|"
    r"rfc822;\s?)?(?P<address>[^\s<>()\[\]\"'`,;:=][^\s<>()\[\]\"'`,;:]{0,99}@"
    r"[^\s<>()\[\]\"'`,;:]{1,200})[>\])\"'`]{0,2}"
    r"(?:\s*[<\[(]mailto:[^>\])]{0,300}[>\])])?(?P<rest>.*)$",
    re.IGNORECASE,
)
_POLITE = re.compile(
    r"this (?:message|mail|e-?mail|report) (?:was|is|has been) (?:an )?automatically\b[^.\n]{0,80}\.?|"
    r"(?:this message was )?created\s+automatically\s+by\s+mail\s+delivery\s+software\.?|"
    r"(?:a|your) message (?:that you sent|sent by\s[^.\n]{0,200}|you sent)\s+(?:could|has)\s+not\s+(?:yet\s+)?"
    r"be(?:en)?\s+delivered\s+to\s+(?:one or more of\s+|all of\s+|all\s+)?its\s+recipients\.?|"
    r"the following\s+address(?:es|\(es\))?\s+failed:?",
    re.IGNORECASE,
)
"""Sentences that stand in every report of an MTA and say nothing of the reason."""
_OF_ORIGINAL = re.compile(r"[\s>*]*(?:to|cc|an|para|pour|à|till|aan|кому)\s*:", re.IGNORECASE)
"""A header of the original quoted in the report ("Your message / To: ... / did not reach ...")."""
_SENT_BY = re.compile(r"\b(?:from|by|sender)\s*:?\s{0,3}[<\"'(]{0,2}$", re.IGNORECASE)
"""What stands in front of a sender's address ("does not accept mail from ...")."""
_CONTACT = re.compile(
    r"\b(?:contact|questions?|assistance|help ?desk|please (?:e-?mail|forward|reply|send|write)|"
    r"send (?:e-?mail|a message)|report (?:this|it|errors?))\b",
    re.IGNORECASE,
)
"""What follows is somebody to ask, not somebody who could not be reached."""
_REASON_LINES = 14
_RESORT_BYTES = 16 * 1024
_RESORT_LINE = 400
_REPLY_LINE = re.compile(r"[\s>*<|\-]*(?:\w+:\s*)?[45]\d\d[ \-]")


def parse_text(mail: BounceMail) -> list[Failed]:
    """The recipients a human-readable bounce names. Call it for what :func:`looks_like_bounce`."""
    text = report_text(mail)
    action = "delayed" if is_delay(mail, text) else "failed"
    declared = addresses(mail.headers.get("x-failed-recipients", []))
    reasons = _reasons(text, _addresses_of(mail, _WRITTEN_BY + _GOT_BY))
    if not reasons:
        # DragonFly's agent writes the failed recipient into the report's X-Original-To
        reasons = _reasons(text, _addresses_of(mail, _WRITTEN_BY)) or _of_oneself(mail, text)
    if len(reasons) == 1:
        reasons = {a: _with_code(r, text) for a, r in reasons.items()}
    if declared:
        whole = _whole(text)
        by_key = {k.lower(): v for k, v in reasons.items()}
        return [
            Failed(a, action, None, by_key.get(a.lower()) or whole)
            for a in list(dict.fromkeys(declared))[:MAX_FOUND]
        ]
    if reasons:
        return [Failed(a, action, None, r) for a, r in list(reasons.items())[:MAX_FOUND]]
    return []


def _of_oneself(mail: BounceMail, text: str) -> dict[str, str]:
    """A mail to oneself comes back to whom it is about."""
    lines = text.splitlines()
    own = _addresses_of(mail, tuple(name for name in _WRITTEN_BY if name != "to"))
    starts = [(n, m) for n, m in _starts(lines, own) if not _OF_ORIGINAL.match(lines[n])]
    return _begun(lines, starts, text)


_WRITTEN_BY = ("from", "sender", "reply-to", "to", "return-path", "errors-to")
_GOT_BY = ("delivered-to", "x-original-to")


def _addresses_of(mail: BounceMail, names: tuple[str, ...]) -> set[str]:
    """Who wrote the report and who got it: not the ones it is about."""
    found: set[str] = set()
    for name in names:
        found.update(a.lower() for a in addresses(mail.headers.get(name, [])))
    return found


def _with_code(reason: str, text: str) -> str:
    """The words about the only recipient; where they hold no code but the report does, in front of the
    address or far from it, the lines with a code."""
    if CODED.search(reason):
        return reason
    coded = [line.strip() for line in text.splitlines() if _REPLY_LINE.match(line)]
    return "\n".join(coded)[:2000] or reason


def _reasons(text: str, own: set[str]) -> dict[str, str]:
    """Address -> the words about it, in order of appearance: addresses at the beginning of a line, else in
    a sentence of failure, else in a quoted header of the original, else the first of all."""
    lines = text.splitlines()
    starts = _starts(lines, own)
    named = [(n, m) for n, m in starts if not _OF_ORIGINAL.match(lines[n])]
    return (
        _begun(lines, named, text)
        or _in_sentences(lines, own, text)
        or _begun(lines, starts, text)
        or {address: _whole(text) for address in _others(text[:8000], own)[:1]}
    )


def _begun(lines: list[str], starts: list[tuple[int, re.Match[str]]], text: str) -> dict[str, str]:
    """Those that begin a line; where words of failure stand beside some of them, those alone."""
    found: dict[str, str] = {}
    spelled: dict[str, str] = {}  # lower case -> as first written
    failed: set[str] = set()
    numbers = {number for number, _ in starts}
    together: list[str] = []  # addresses one below the other share the words below the last
    for place, (number, match) in enumerate(starts):
        end = starts[place + 1][0] if place + 1 < len(starts) else len(lines)
        address = match["address"].rstrip(".,;:>")
        reason = _reason(match["rest"], lines[number + 1 : min(end, number + 1 + _REASON_LINES)])
        key = spelled.setdefault(address.lower(), address)
        before = bool(FAILURE.search(_before(lines, number, numbers)))
        if reason:
            for other in together:
                found[other] = found[other] or reason
            together = []
        elif not before:
            continue
        if before or FAILURE.search(reason):
            failed.add(key)
        if not reason:
            together.append(key)
        if key not in found or _worth(reason) > _worth(found[key]):
            found[key] = reason
    kept = [key for key in found if not failed or key in failed][:MAX_FOUND]
    return {
        key: found[key]
        if CODED.search(found[key])
        else _quoted(lines, key) or found[key] or _whole(text)
        for key in kept
    }


def _quoted(lines: list[str], address: str) -> str:
    """The lines elsewhere in the report that hold a code and name the address ("550 <a@b>... unknown")."""
    name = address.lower()
    about = [line.strip() for line in lines if name in line.lower() and _REPLY_LINE.match(line)]
    return "\n".join(about)[:2000]


def _before(lines: list[str], number: int, starts: set[int]) -> str:
    """The three last lines of words in front of a line, addresses passed over."""
    words: list[str] = []
    for n in range(number - 1, max(-1, number - 60), -1):
        if lines[n].strip() and n not in starts:
            words.append(lines[n])
            if len(words) == 3:
                break
    return " ".join(reversed(words))


def _in_sentences(lines: list[str], own: set[str], text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines[:400]:
        if FAILURE.search(line) and not _OF_ORIGINAL.match(line):
            words = line.strip()
            asked = _CONTACT.search(line)
            for address in _others(line[: asked.start()] if asked else line, own):
                found.setdefault(address, words if CODED.search(words) else _whole(text))
    return found


def _others(text: str, own: set[str]) -> list[str]:
    """Addresses in a text that are neither of the report's own nor a mail system's nor a sender's."""
    matches = _ADDRESS.finditer(text)
    found = [m[0] for m in matches if not _SENT_BY.search(text[max(0, m.start() - 20) : m.start()])]
    return [a for a in found if a.lower() not in own and not NOBODY.match(a)]


def _starts(lines: list[str], own: set[str]) -> list[tuple[int, re.Match[str]]]:
    """The lines that begin with somebody's address, at most :data:`MAX_STARTS`."""
    found: list[tuple[int, re.Match[str]]] = []
    for number, line in enumerate(lines):
        if (match := _begins(line, own)) is not None:
            found.append((number, match))
            if len(found) == MAX_STARTS:
                break
    return found


def _begins(line: str, own: set[str]) -> re.Match[str] | None:
    match = _LINE.match(line[:1000])
    if match is None:
        return None
    address = match["address"].rstrip(".,;:>").lower()
    if not _ADDRESS.fullmatch(address) or address in own or NOBODY.match(address):
        return None
    return match


def _reason(rest: str, following: list[str]) -> str:
    words = [rest.strip(" :.-\t>")] if rest.strip(" :.-\t>") else []
    blanks = 0
    for line in following:
        stripped = line.strip()
        if not stripped:
            blanks += 1
            if words and (blanks > 3 or CODED.search(" ".join(words))):
                break
            continue
        if CODED.search(stripped) or not _CONTACT.search(stripped):
            words.append(stripped)
    return "\n".join(words)[:2000]


def _worth(reason: str) -> tuple[bool, bool, int]:
    """How much a reason says: a code, words of failure, length."""
    return bool(CODED.search(reason)), bool(FAILURE.search(reason)), len(reason)


def _whole(text: str) -> str:
    """The report without its politeness, for the classifier: lines from the first failure on."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    coded = [line for line in lines if re.search(r"\b[45]\d\d[ \-]|\b[45]\.\d\.\d", line)]
    return _POLITE.sub("", "\n".join(coded or lines)[:4000]).strip()[:2000]


_PASSED = re.compile(
    r"^[ \t<]{0,8}(?P<child>[^\s<>()\"]{1,100}@[^\s<>()\"]{1,200}?)>?:?[ \t]*(?:\([^\n]{0,200})?"
    r"(?:\n[ \t]+\((?!\w+ from)[^\n]{0,300}){0,2}\n?[ \t]*"
    r"\((?:ultimately )?(?:generated|expanded) from:?\s*<?"
    r"(?P<parent>[^\s<>()\"]{1,100}@[^\s<>()\"]{1,200})>?\)",
    re.IGNORECASE | re.MULTILINE,
)


def forwarded(mail: BounceMail) -> dict[str, str]:
    """Address, lower case -> the address it stands for, where a report says that a host passed the mail on
    ("(generated from ...)", "(expanded from: ...)"): we mailed the second and know nothing of the first."""
    text = report_text(mail)[:16_000]
    if " from" not in text:
        return {}
    return {m["child"].lower(): m["parent"] for m in _PASSED.finditer(text)}


def last_resort(data: bytes) -> tuple[set[str], set[str]]:
    """Temporary and permanent failures flufl.bounce finds in the beginning of a mail: some of its patterns
    take quadratic time."""
    import email
    import logging

    from flufl.bounce import all_failures

    logging.getLogger("flufl.bounce").disabled = True  # it logs every surprise of a hostile mail
    lines = (line[:_RESORT_LINE] for line in data[:_RESORT_BYTES].split(b"\n"))
    try:
        temporary, permanent = all_failures(email.message_from_bytes(b"\n".join(lines)))
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError):
        return set(), set()  # a third party's parser over hostile input: no answer is an answer

    def texts(found: set[bytes]) -> set[str]:
        return {a.decode("ascii", "replace") for a in found if b"@" in a}

    return texts(temporary), texts(permanent)
