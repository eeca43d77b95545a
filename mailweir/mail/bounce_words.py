"""The words of a report: its own text, and the copy of the original that follows them in it."""

from __future__ import annotations

import re

from mailweir.mail.bounce_mail import BounceMail

_ORIGINAL_BEGINS = re.compile(
    r"^(?:[-=_*\s>]{2,}.{0,12}(?:below this line|original message|copy of (?:the|your)|"
    r"returned message|message (?:header|text|body)|"
    r"unsent message|forwarded message|undelivered message|ursprüngliche|message d'origine|"
    r"mensaje original|header)|"
    r"------ this is a copy|-+ ?original message|the (?:header|body|first|beginning|"
    r"full)\w* .{0,40}(?:original|message)|"
    r"original message (?:follows|headers?)|your (?:original )?message (?:reads|headers?|follows)|"
    r"(?:message|original) headers? follow|received: (?:from|by|\()|return-path: ?<|x-received:|"
    r"begin original|-- ?original|unsent message (?:is )?below|returned mail follows|原邮件(?!信息)|"
    r">>> original)",
    re.IGNORECASE,
)
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9\-]{1,40}:(?: |$)")


def report_text(mail: BounceMail) -> str:
    """The report's own words: the text up to the copy of the original."""
    return _split(mail)[0]


def inline_original(mail: BounceMail) -> str:
    """The copy of the original that stands in the text itself, from its first header on, or ""."""
    lines = _split(mail)[1].splitlines()
    start = next((n for n, line in enumerate(lines[:30]) if _HEADER.match(line)), None)
    return "" if start is None else "\n".join(lines[start:])


def _split(mail: BounceMail) -> tuple[str, str]:
    kept: list[str] = []
    lines = mail.texts().splitlines()[:1500]
    for number, line in enumerate(lines):
        if number and _ORIGINAL_BEGINS.match(line.strip()[:200]):
            return "\n".join(kept), "\n".join(line[:2000] for line in lines[number:])
        kept.append(line[:2000])
    return "\n".join(kept), ""
