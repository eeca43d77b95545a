"""A remote's reply as it reaches us - several lines, repeated codes, wrapped in an MTA's own words -
brought into one plain line, with its code, enhanced code, stage and time hint read off.

Everything is bounded: at most 2,000 characters are looked at, and no pattern backtracks over more.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from mailweir.mail.quoted import CODE_AT_START, own_reply, without_edges, without_own_words

MAX_CHARS = 2000
"""What of a reply is looked at."""

MAX_HINT = 5 * 86400.0
"""Longest wait a reply may ask for that is believed, seconds (RFC 5321 4.5.4.1: give up after 4-5 days)."""


class Reply(NamedTuple):
    """One reply, read. ``text`` is lower case, one line, without codes, addresses as ``<@>``."""

    text: str
    code: int | None  # SMTP, 200-599
    enhanced: str | None  # RFC 3463
    stage: str | None  # as the text itself tells it: connect, mail, rcpt, data, dot


_BLANKS = re.compile(r"[\s\x00-\x1f\x7f\u200b\ufeff]+")
_ESCAPED_NEWLINE = re.compile(r"(?:\\r)?\\n")
# where to read more says nothing; a page's address stays
_READ_MORE = re.compile(
    r"(?<=\w[.!] )for (?:more|further) (?:information|details|help)[^.;!?:/]{0,120}(?:[.;!]|$)",
    re.IGNORECASE,
)
# of an address of a page only the place and Google's reason (?p=NoSuchUser) say anything
_PAGE = re.compile(r"(https?://[^\s?]{1,200})\?(?:[^\s]*?\b(p=[a-z]+))?\S*", re.IGNORECASE)
_CODE_ANYWHERE = re.compile(r"(?<![\d.\-/:#])([45]\d\d)(?=[ \-]\D|[ \-]\d\.\d|:\s)(?!-\d)")
_CODE_NAMED = re.compile(r"\b(?:code|error|status)[:=]? ?[\[(\"']{0,2}([45]\d\d)\b(?!\.)")
_ENHANCED = re.compile(r"(?<![\d.])([245])\.(\d{1,2})\.(\d{1,3})(?!\d|\.\d)")
_ACCEPTED = re.compile(r"2\d\d[ \-]2\.(\d{1,2})\.(\d{1,3})(?= )")
_ACCEPTED_MOST = 11  # characters of what it matches, and the blank
_ENHANCED_IN_TEXT = re.compile(r"(?<![\d.])#?[245]\.\d{1,2}\.\d{1,3}(?!\d|\.\d)")
_ADDRESS = re.compile(r"<?[^\s<>()\"',;:=]{1,200}@[a-z0-9.\-\[\]]{1,200}>?")
_IN_REPLY_TO = re.compile(
    r"(?:in reply to|after|in response to)\s+(?:the\s+)?(?:smtp\s+)?(end of data|rcpt to|"
    r"mail from|data|"
    r"helo|ehlo|starttls|initial connection|pipelined end of data)",
    re.IGNORECASE,
)
# qmail-remote's own words
_QMAIL_STAGE = (
    ("but my name was rejected", "ehlo"),
    ("but sender was rejected", "mail"),
    ("does not like recipient", "rcpt"),
    ("failed on data command", "data"),
    ("failed after i sent the message", "dot"),
)
_STAGE_OF = {
    "end of data": "dot",
    "pipelined end of data": "dot",
    "rcpt to": "rcpt",
    "mail from": "mail",
    "data": "data",
    "helo": "ehlo",
    "ehlo": "ehlo",
    "starttls": "starttls",
    "initial connection": "connect",
    "greeting": "banner",
    "eod": "dot",
}


def stage_of(name: str) -> str:
    """Our word for an SMTP stage, whatever it is called: ``RCPT TO``, ``mail_from``, ``end-of-data``."""
    word = name.lower().replace("_", " ").replace("-", " ").strip()
    return _STAGE_OF.get(word, word)


def read(reply: str) -> Reply:
    """Read a reply of any shape. Never raises."""
    text = reply[: 2 * MAX_CHARS].replace("&nbsp;", " ")
    if "\\" in text:
        text = _ESCAPED_NEWLINE.sub("\n", text)
    text = _BLANKS.sub(" ", text).strip()[:MAX_CHARS]
    if text.count("_") > 4 and text.count("_") > 2 * text.count(" "):
        text = text.replace("_", " ")  # as qmail writes its log
    stage_found = _IN_REPLY_TO.search(text)
    inner = own_reply(text)
    code = _code(inner) or _code(text)
    enhanced = _enhanced(inner) or _enhanced(text)
    inner = _PAGE.sub(lambda page: page[1] + ("?" + page[2] if page[2] else ""), inner)
    plain = _ADDRESS.sub("<@>", _READ_MORE.sub("", without_own_words(inner)).lower())
    plain = _ENHANCED_IN_TEXT.sub(" ", plain)
    if code is not None:  # the code of every line; another number may be a wait or a size
        plain = re.sub(rf"(?:^|(?<=[\s;:])){code}[ \-]+(?=\S)", " ", plain + " ")
    plain = without_edges(_BLANKS.sub(" ", plain).strip())
    stage = _STAGE_OF[stage_found[1].lower()] if stage_found else _qmail_stage(text)
    return Reply(plain, code, enhanced, stage)


def _qmail_stage(text: str) -> str | None:
    low = text.lower()
    return next((stage for words, stage in _QMAIL_STAGE if words in low), None)


def _code(text: str) -> int | None:
    found = (
        CODE_AT_START.match(text) or _CODE_ANYWHERE.search(text) or _CODE_NAMED.search(text.lower())
    )
    return int(found[1]) if found else None


def _enhanced(text: str) -> str | None:
    found = _ENHANCED.search(text)
    return f"{found[1]}.{int(found[2])}.{int(found[3])}" if found else None


def code_of(reply: str) -> int | None:
    """The SMTP reply code in a reply, 200 to 599; None where there is none."""
    return read(reply).code


def enhanced_of(reply: str) -> str | None:
    """The RFC 3463 code in a reply, as ``5.1.1``; None where there is none."""
    return _enhanced_of_accepted(reply[:_ACCEPTED_MOST]) or read(reply).enhanced


@lru_cache(maxsize=256)
def _enhanced_of_accepted(start: str) -> str | None:
    """The code of an accepted mail, which most replies are: no need to read them whole."""
    found = _ACCEPTED.match(start)
    return f"2.{int(found[1])}.{int(found[2])}" if found else None


_UNITS = (
    (re.compile(r"^(?:s|sec|secs|seconds?|sekunden?|secondes?|segundos?|secondi|秒)\b"), 1.0),
    (re.compile(r"^(?:m|min|mins|minutes?|minuten?|minutos?|minuti|分钟|分)\b"), 60.0),
    (re.compile(r"^(?:h|hrs?|hours?|stunden?|heures?|horas?|ore|小时)\b"), 3600.0),
    (re.compile(r"^(?:d|days?|tage?n?|jours?|d[ií]as?|天)\b"), 86400.0),
)
_WAIT = (
    r"(?:again|retry|retrying|retries|wait|come back|resend|reconnect|greylist\w*|graylist\w*|"
    r"gr[ae]y-?list\w*|"
    r"delay\w*|defer\w*|try|blocked for|expires?|remaining|erneut|r[ée]essay\w*|intente\w*|"
    r"riprova\w*)"
)
_HINT = re.compile(
    _WAIT + r"[^\d;]{0,40}?(?:(\d{1,2}):(\d\d):(\d\d)|"
    r"(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*([a-z秒分小天íé]{1,9}))"
)
_HINT_BEFORE = re.compile(
    r"(?:in|after|for|within|at least|\bwait)\s+(?:another\s+)?(\d{1,6})()\s*([a-z]{1,8})"
    r"[^.;]{0,30}?\b(?:again|retry)"
)
_HINT_WORDS = (
    (re.compile(r"(?:again|retry|resend|wait)[^.;]{0,30}\b(?:in an?|an|one|1) hour"), 3600.0),
    (
        re.compile(
            r"(?:again|retry|resend|wait)[^.;]{0,30}\b(?:few|couple of|some|several) minutes"
        ),
        300.0,
    ),
    (re.compile(r"(?:again|retry|resend|wait)[^.;]{0,30}\b(?:a|one) minute"), 60.0),
    (
        re.compile(r"(?:again|retry|resend|wait)[^.;]{0,30}\b(?:few|couple of|some|several) hours"),
        7200.0,
    ),
    (re.compile(r"(?:again|retry|resend|wait)[^.;]{0,30}\b(?:few|couple of|some) seconds"), 30.0),
    (re.compile(r"(?:again|retry|resend|wait)[^.;]{0,30}\b(?:tomorrow|next day|24h)\b"), 86400.0),
)
_RETRY_HEADER = re.compile(
    r"retry[- ]after[:= ]+(\d{1,6})(?![\d:])\s*$|retry[- ]after[:= ]+(\d{1,6})(?=[^\d\w:]|$)"
)


def retry_hint(text: str) -> float | None:
    """The wait a reply asks for, in seconds, out of its (lower-case) text: "try again in 5 minutes",
    "greylisted for 300 seconds", "retry after 00:05:00". None where it asks for none."""
    found = _HINT.search(text)
    if found:
        if found[1] is not None:
            return _bounded(int(found[1]) * 3600.0 + int(found[2]) * 60 + int(found[3]))
        seconds = _seconds(int(found[5] or found[4]), found[6])
        if seconds is not None:
            return _bounded(seconds)
    found = _HINT_BEFORE.search(text)
    if found:
        seconds = _seconds(int(found[1]), found[3])
        if seconds is not None:
            return _bounded(seconds)
    found = _RETRY_HEADER.search(text)
    if found:
        return _bounded(float(found[1] or found[2]))
    for pattern, wait in _HINT_WORDS:
        if pattern.search(text):
            return wait
    return None


def _seconds(count: int, unit: str) -> float | None:
    for pattern, each in _UNITS:
        if pattern.match(unit):
            return count * each
    return None


def _bounded(seconds: float) -> float | None:
    return min(seconds, MAX_HINT) if seconds > 0 else None
