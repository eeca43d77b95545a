"""The remote's own reply inside what programs wrap around it: log lines of MTAs, exceptions of libraries,
JSON of providers.

What a remote said means the same whoever hands it on; a test puts every known line into the wrappings of
some forty programs and expects the same category. Pure, bounded, never raises.
"""

from __future__ import annotations

import re

_DIAGNOSTIC_TYPE = re.compile(
    r"^\s*(?:sm[tp]{2}|x-[a-z0-9-]{1,30}|x400|lmtp)\s*;\s*", re.IGNORECASE
)
CODE_AT_START = re.compile(r"^\W{0,4}(?:sm[tp]{2};\s*)?([2-5]\d\d)(?![\d.])(?:[ \-:,#]|$)")
_FAILURE_AT_START = re.compile(r"\W{0,4}(?:[45]\d\d(?![\d.])|[45]\.\d{1,3}\.\d{1,3}\b)")
_ENHANCED_AT_START = re.compile(r"^[245]\.\d{1,3}\.\d{1,3} (?!- )")
# how our side, a Postfix or an Exim hands on the reply it got
_HANDED_ON = re.compile(
    r"^(?:(?:.{0,400}?\bstatus=\w+ \(|<?[^\s<>]{1,200}@[^\s<>]{1,200}>?:\s+)?"
    r"host [^\s\[]{1,200}(?:\[[^\]]{0,60}\])? said:|"
    r".{0,400}?\bsmtp error from remote mail(?:er| server) after [a-z ]{3,30}(?::<[^>]{0,200}>)?"
    r"(?: size=\d+)?:(?:\s+host \S{1,200} \[[^\]]{0,60}\]:)?)\s+"
    r"(?=[245]\d\d[ \-]|[245]\.\d{1,3}\.\d{1,3} )",
    re.IGNORECASE,
)
# where another MTA quotes the remote: what follows is the reply itself
_QUOTED = re.compile(
    r"(?:\bsaid:|\]:|\bunknown address error (?=['\"]?[45]\d\d)|"
    r"\breason(?: from remote)?:|\bresponded with:?|\breplied:|\bremote host said:|"
    r"\bthe error that the other server returned was:|"
    r"\bthe response (?:from the remote server )?was:|"
    r"\bremote server (?:returned|replied|responded)(?: with)?:?|\bserver response(?: was)?:|"
    r"\bsmtp;|<<<|\b(?:result|response|cause|stat|dsnstatus)=|\bwith code|\bwith message|"
    r"\(code:|\"code\":|\b[45]\.\d\.\d - [a-z ]{5,50})\s*"
    r"['\"(]{0,2}(?=[245]\d\d[ \-,'\"]|[245]\.\d{1,3}\.\d{1,3})",
    re.IGNORECASE,
)
# where a program wraps the reply in words of its own, the reply begins with its code:
# "SMTP error from remote mail server after RCPT TO:<u@h>: 550 ...", "SMTPDataError: (554, b'...')"
_WRAPPED = re.compile(
    r"(?:(?<!smtp code)[:;]\s+(?:<[^<>\s]{1,200}>\s+)?|[({]\s*)['\"]?"
    r"(?=(?:[45][0-57]\d)(?:[ \-]|,\s*b?['\"]))",
    re.IGNORECASE,
)
# where no code stands: what follows is all that is told of the reply
_DIAGNOSTIC_FIELD = re.compile(
    r"\bdiagnostic-code:\s*(?:[\w-]{2,40}\s*;\s*)?|\bdsn=[\d.]{5,11}, stat=|\blast attempt failed because:\s*|"
    r"\bstatus=(?:bounced|undeliverable) \(",
    re.IGNORECASE,
)
# the fields of a provider's event that may hold the reply; what a provider calls a description is its own words
_EVENT = re.compile(r"\W{0,3}\"[\w-]{1,40}\"\s*:")
_EVENT_FIELD = re.compile(
    r"\"(?:(?:raw|smtp|bounce)[_-]?)?(response|diagnostic_?code|diag|details?|comment|reason|error_?details|error|"
    r"message|description)\"\s*:\s*\"((?:[^\"\\]|\\.)+)\"",
    re.IGNORECASE,
)
_EVENT_CODE = re.compile(
    r"\"(?:smtp[_-]?(?:response[_-]?)?|reply[_-]?)?code\"\s*:\s*\"?([45]\d\d)\b", re.IGNORECASE
)
_EVENT_PASSING = re.compile(
    r"\"(?:event|type|bounce_?type|severity)\"\s*:\s*\"(?:deferr\w+|delay\w*|transient|temporary|soft\w*)\"",
    re.IGNORECASE,
)
# code and text as two values: (550, b'...'), '550', ['...'], 550 (5.1.1) '...'
_TWO_VALUES = re.compile(
    r"^\W{0,3}([245]\d\d)['\"]?[,\-]?\s*(?:\(([45]\.\d{1,3}\.\d{1,3})\)\s*)?"
    r"(?:response:\s*|\"message\":\s*\"|(?:b?['\"]|\[['\"]?)+)"
)
_OPENING = re.compile(r"^(?:b?['\"\[({]|<?-+>?\s)+\s*", re.IGNORECASE)
_LEFT_OVER = re.compile(r"^(?:b?['\"]|<?-+>?\s|[\[({](?=\s))+\s*")
_CLOSING = re.compile(r"(?:['\"\]})]|(?<!@)>|\s#smtp#|(?<=\))\.)+$")
# what an MTA adds about itself: no word of it may decide
_OWN_WORDS = re.compile(
    r"\(?\bin (?:reply|response) to (?:the )?[a-z -]{3,40}? command\)?\)?|"
    r"\bsmtp error from remote (?:mail )?server after [a-z ]{3,30}(?:<[^>]{0,200}>)?(?: size=\d+)?:|"
    r"\bhost [^\s\[]{1,200}(?:\[[^\]]{0,60}\])? said:|"
    r"^[a-z ,.\-]{3,150}the server response was:(?=\s*\S)|"
    r"\bsmtp error \(\d{3}\): failed to (?:add recipient|set sender|send message)(?: \"[^\"]*\")?|"
    r"^.{0,160}?\bcommand failed:? detail:|\bsmtp code: \d{3}(?: additional smtp info:)?|"
    r";? from=<?[^\s>]{0,200}>? (?:to=<?[^\s>]{0,200}>? )?proto=\w+(?: helo=<[^>]{0,200}>)?|"
    r" \(delivery attempts: \d{1,9}\)|\",\s*\"[a-z_\-]{2,30}\":.*$|"
    r"^.{0,200}?\breject: \S{3,40} from [^\s\[]{1,200}\[[^\]]{0,60}\]:|\br=\w+ t=\w+ (?:defer \(-?\d+\):)?|"
    r"^\s*delivery temporarily suspended:|, ?relay ?= ?\[[^\]]{0,60}\]|/?\bgiving up on [\d.:a-f]+\W*$",
    re.IGNORECASE,
)
# Exim's, behind the last reply; where no reply stands before them they are all there is
_GAVE_UP = re.compile(r": ?retry time(?:out)? (?:exceeded|not reached)[^;]{0,80}$", re.IGNORECASE)
_NO_REPLY = re.compile(
    r"\S{1,200}@\S{1,200}|\b[rt]=\w+|\bhost \S{1,200}(?: \[[^\]]{0,60}\])?|"
    r"\b\w{6}-\w{6,11}-\w{2,4}\b",  # Exim's id of a message
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]{2}")
_OWN_SIGNS = (
    "in re", " said:", "smtp error", "was:", "command failed", "smtp code:", "proto=", "attempts:",
    '":', " t=", "suspended:", "relay", "giving up", "reject:",
)  # fmt: skip
"""One of these is in every text that _OWN_WORDS can match: asking for them first is a fifth of the cost."""

_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.\-]+/)+[\w.\-]*")
_ENDS = frozenset("'\"]})>.#")


def own_reply(text: str) -> str:
    """What the remote itself said, from its code on; all of the text where nobody seems to quote.

    Of several quotations the last is the nearest to the remote, except where the text begins with a code:
    then it is the remote's own reply, and whom that quotes ("host x said: 550 ...") is its reason.
    """
    inner = _HANDED_ON.sub("", _DIAGNOSTIC_TYPE.sub("", _event_reply(text) or text))
    if not CODE_AT_START.match(inner) and not _ENHANCED_AT_START.match(inner):
        quotations = list(_QUOTED.finditer(text))
        if quotations:
            inner = text[quotations[-1].end() :]
        elif wrapped := _WRAPPED.search(inner) or _DIAGNOSTIC_FIELD.search(inner):
            inner = inner[wrapped.end() :]
    inner = _TWO_VALUES.sub(r"\1 \2 ", _OPENING.sub("", inner))
    again = inner.find(f": {inner[:16]}", 16)  # ZoneMTA and Forward Email say it twice
    return inner[:again] if again > 0 and inner[:3].isdigit() else inner


def _event_reply(text: str) -> str | None:
    """The reply in a provider's event: the first field that begins with a code of failure (of several
    recipients the first one's), else the words of all, with the code that stands apart, if any. What is called
    a description are the provider's own words: it counts where there is nothing else."""
    if not _EVENT.match(text):
        return None
    fields = [(found[1].lower(), found[2]) for found in _EVENT_FIELD.finditer(text)]
    for _, value in fields:
        if _FAILURE_AT_START.match(_DIAGNOSTIC_TYPE.sub("", value)):
            return value
    told = [value for name, value in fields if name != "description"]
    words = " ".join(told or [value for _, value in fields])
    if not words:
        return None
    if apart := _EVENT_CODE.search(text):
        return f"{apart[1]} {words}"
    return f"deferred: {words}" if _EVENT_PASSING.search(text) else words


def without_own_words(text: str) -> str:
    """The text without what the program that hands it on says of itself."""
    low = text.lower()
    if any(sign in low for sign in _OWN_SIGNS):
        text = _OWN_WORDS.sub(" ", text)
    if "retry time" in low and (found := _GAVE_UP.search(text)):
        before = text[: found.start()]
        text = before if _WORD.search(_NO_REPLY.sub(" ", before)) else found[0]
    return _PATH.sub(" ", text) if "/" in text else text


def without_edges(plain: str) -> str:
    """The text without the quotes and brackets left over around it."""
    if plain[-1:] in _ENDS:
        plain = _CLOSING.sub("", plain)
    return _LEFT_OVER.sub("", plain)
