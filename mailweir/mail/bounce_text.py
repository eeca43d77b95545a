"""Bounces written for people: qmail, Exim, sendmail, Exchange before 2007, Domino, Yahoo, Gmail, Courier,
MDaemon, IMail, GroupWise and whoever else never heard of RFC 3464.

One reader for all: cut off the copy of the original, take the addresses that begin a line or stand in a
sentence of failure, and give each the words that follow it. flufl.bounce is asked where that finds nobody.
"""

from __future__ import annotations

import re

from mailweir.mail.bounce_mail import BounceMail, addresses
from mailweir.mail.dsn import Failed

MAX_FOUND = 50

_SUBJECT = re.compile(
    r"undeliver|not (?:be )?deliver|non[- ]?deliver|deliver\w* (?:status|failure|failed|"
    r"notification|problem|error|report|"
    r"delayed|has failed|temporarily|incomplete|warning)|fail\w* (?:notice|delivery|mail|"
    r"to deliver|message)|failure notice|"
    r"(?:mail|message|e-?mail)\w* (?:system|delivery|status|could not|error|failure|failed|"
    r"not delivered|undeliver|bounced|"
    r"cannot|rejected|returned|subsystem)|return(?:ed|ing) (?:mail|message|to sender|e-?mail)|"
    r"\bbounce[ds]?\b|"
    r"warning: (?:could not|message|mail)|could not send|cannot send|rejected (?:mail|message)|"
    r"nondeliver|mailer-daemon|"
    r"unzustellbar|nicht zugestellt|zustell\w*|unable to deliver|"
    r"non (?:remis|d[ée]livr|distribu)|[ée]chec|impossible de remettre|"
    r"no (?:se )?(?:ha )?(?:podido |pudo )?(?:entreg|envi)|devuelto|error de entrega|rebotado|"
    r"n[ãa]o (?:foi )?(?:entregue|poss[íi]vel)|devolvid|falha|"
    r"mancata consegna|non recapitabil|non consegn|recapito|"
    r"onbestelbaar|niet (?:worden )?(?:bezorgd|afgeleverd)|"
    r"niedostarcz|nie (?:zosta[łl]a?|mo[żz]na) dor[ęe]cz|zwrot|niedor[ęe]cz|"
    r"недостав|не (?:может быть )?доставлен|ошибка доставки|возвра[тщ]|"
    r"退信|无法(?:投递|送达)|投递失败|发送失败|系统退信|未送达|"
    r"配信(?:不能|エラー|できません)|送信(?:失敗|できません)|不達|エラーメール|반송|"
    r"nedoru[čc]iteln|kan inte leverera|"
    r"kunne ikke|ikke leveret",
    re.IGNORECASE,
)
_MACHINE = re.compile(
    r"mailer[-_. ]?daemon|\bpost[-_]?master\b|mail[- ]delivery|mail administrator|maildelivery|"
    r"mdaemon|bounce|"
    r"microsoftexchange|system administrator|\bmaileragent|no-?reply-?dsn|mail system|"
    r"internet mail (?:service|delivery)",
    re.IGNORECASE,
)
_DELAY = re.compile(
    r"warning (?:message )?only|do not need to re-?send|will (?:be|keep|"
    r"continue)(?: \w+){0,3} (?:re)?(?:try|trying|tried|retry\w*|attempt\w*)|"
    r"not yet been delivered|still undelivered|delivery (?:is |"
    r"has been |was )?(?:temporarily )?(?:delayed|suspended)|"
    r"is (?:being )?delayed|delayed (?:for|mail|delivery)|(?:delivery|mail|message) delay|"
    r"temporarily deferred|will be retried|"
    r"no action is required|delivery to the following recipients? has been delayed|"
    r"wird weiterhin versucht|"
    r"sera (?:r[ée]essay|retent)|seguir[áa] intent",
    re.IGNORECASE,
)
_FINAL = re.compile(
    r"permanent(?:ly)? (?:fail|fatal|error)|given up|giving up|could not be delivered|"
    r"was not delivered|fail(?:ed|ure) permanently|"
    r"undeliverable",
    re.IGNORECASE,
)
_FAILURE = re.compile(
    r"fail|undeliver|not (?:be )?(?:deliver|found|exist|reach|known|accept|listed)|unknown|"
    r"invalid|reject|refus|denied|"
    r"error|unable|couldn.?t|cannot|can.?t|could not|no such|does not|did not|doesn.?t|full|"
    r"quota|exceed|disabled|"
    r"inactive|blocked|bounced|unreach|\b[45]\d\d[ -]|\b[45]\.\d\.\d|unzustell|nicht|inconnu|"
    r"no existe|desconocid|"
    r"不存在|失败|無法|无法|届|エラー|не |нет ",
    re.IGNORECASE,
)
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
_ADDRESS = re.compile(
    r"(?<![\w.+\-/])[\w.!#$%&'*+/=?^`{|}~\-]{1,100}@[\w.\-]{1,200}\.[a-z0-9\-]{2,24}(?![\w@])",
    re.IGNORECASE,
)
_LINE = re.compile(
    r"^[\s>*\-|•]*(?:(?:<b>)?(?:failed (?:address|recipient)|recipient|to|for|user|address|"
    r"unknown user|no such user|mail to|"
    r"undeliverable to|undeliverable address|rcpt to|invalid (?:recipient|address|user)|"
    r"final recipient|e-?mail|addressee|"
    r"user mailbox exceeds allowed size|mailbox full|receiver not found|收件人|destinataire|"
    r"destinatario|empf[äa]nger|"
    r"получатель|odbiorca|宛先)s?(?:</b>)?\s*[:=\-：]*\s*)?"
    r"[<\[(\"'`]{0,2}(?:mailto:|smtp:|"
    r"rfc822;\s?)?(?P<address>[^\s<>()\[\]\"'`,;:]{1,100}@[^\s<>()\[\]\"'`,;:]{1,200})[>\])\"'`]{0,2}"
    r"(?:\s*[<\[(]mailto:[^>\])]{0,300}[>\])])?(?P<rest>.*)$",
    re.IGNORECASE,
)
_CODED = re.compile(r"\b[45]\d\d[ \-]|\b[45]\.\d\.\d|timed out|unknown|unrouteable", re.IGNORECASE)
_REASON_LINES = 14
_REPLY_LINE = re.compile(r"[\s>*<|\-]*(?:\w+:\s*)?[45]\d\d[ \-]")
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9\-]{1,40}:(?: |$)")
_ANSWER = re.compile(
    r"\s*(?:re|aw|antw|sv|vs|odp|rv|res|ynt|回复|答复|返信)\s*(?:\[\d+\])?[:：]", re.IGNORECASE
)
"""A person answering; MTAs put their own words first ("Undeliverable: Re: ...")."""


_PASSED_ON = re.compile(
    r"\s*(?:fwd?|wg|tr|enc|doorst|vb|i|pd|转发|転送)\s*(?:\[\d+\])?[:：]", re.IGNORECASE
)


def passed_on(mail: BounceMail) -> bool:
    """Whether a person passes on, or asks about, a bounce: what it says may be of another's mail."""
    return bool(_PASSED_ON.match(mail.header("subject"))) and not from_machine(mail)


def has_code(words: str) -> bool:
    """Whether words hold a reply code or words only a mail server writes."""
    return bool(_CODED.search(words))


def from_machine(mail: BounceMail) -> bool:
    """Whether a mail system, not a person or a program in a person's name, wrote the mail."""
    sender = mail.header("from") + " " + mail.header("sender")
    return "x-failed-recipients" in mail.headers or bool(_MACHINE.search(sender))


def looks_like_bounce(mail: BounceMail) -> bool:
    """Whether subject, sender or headers say that a mail came back."""
    if "x-failed-recipients" in mail.headers:
        return True
    machine = from_machine(mail)
    if _ANSWER.match(mail.header("subject")) and not machine:
        return False
    if _SUBJECT.search(mail.header("subject")):
        return True
    return machine and bool(_FAILURE.search(_report_text(mail)[:4000]))


def is_delay(mail: BounceMail, text: str) -> bool:
    """Whether the reporter is still trying."""
    head = mail.header("subject") + "\n" + text[:4000]
    return bool(_DELAY.search(head)) and not _FINAL.search(head)


def _report_text(mail: BounceMail) -> str:
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


def parse_text(mail: BounceMail) -> list[Failed]:
    """The recipients a human-readable bounce names. Call it for what :func:`looks_like_bounce`."""
    text = _report_text(mail)
    action = "delayed" if is_delay(mail, text) else "failed"
    declared = addresses(mail.headers.get("x-failed-recipients", []))
    reasons = _reasons(text, _addresses_of(mail, _WRITTEN_BY + _GOT_BY))
    if not reasons:
        # DragonFly's agent writes the failed recipient into the report's X-Original-To
        reasons = _reasons(text, _addresses_of(mail, _WRITTEN_BY))
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
    if _CODED.search(reason):
        return reason
    coded = [line.strip() for line in text.splitlines() if _REPLY_LINE.match(line)]
    return " ".join(coded)[:2000] or reason


def _reasons(text: str, own: set[str]) -> dict[str, str]:
    """Address -> the words about it, in order of appearance."""
    found: dict[str, str] = {}
    lines = text.splitlines()
    starts = [(n, m) for n, line in enumerate(lines) if (m := _begins(line, own)) is not None]
    for place, (number, match) in enumerate(starts):
        end = starts[place + 1][0] if place + 1 < len(starts) else len(lines)
        address = match["address"].rstrip(".,;:>")
        reason = _reason(match["rest"], lines[number + 1 : min(end, number + 1 + _REASON_LINES)])
        before = " ".join(lines[max(0, number - 3) : number])
        if not reason and not _FAILURE.search(before):
            continue
        key = next((a for a in found if a.lower() == address.lower()), address)
        if key not in found or _worth(reason) > _worth(found[key]):
            found[key] = reason or _whole(text)
    if not found:
        for line in lines[:400]:
            if _FAILURE.search(line):
                for match in _ADDRESS.finditer(line):
                    if match[0].lower() not in own and not _MACHINE.search(match[0]):
                        words = line.strip()
                        found.setdefault(match[0], words if _CODED.search(words) else _whole(text))
    if not found:
        for match in _ADDRESS.finditer(text[:8000]):
            if match[0].lower() not in own and not _MACHINE.search(match[0]):
                found.setdefault(match[0], _whole(text))
                break
    return found


def _begins(line: str, own: set[str]) -> re.Match[str] | None:
    match = _LINE.match(line[:1000])
    if match is None:
        return None
    address = match["address"].rstrip(".,;:>").lower()
    if not _ADDRESS.fullmatch(address) or address in own or _MACHINE.search(address):
        return None
    return match


def _reason(rest: str, following: list[str]) -> str:
    words = [rest.strip(" :.-\t>")] if rest.strip(" :.-\t>") else []
    blanks = 0
    for line in following:
        stripped = line.strip()
        if not stripped:
            blanks += 1
            if words and (blanks > 3 or _CODED.search(" ".join(words))):
                break
            continue
        words.append(stripped)
    return " ".join(words)[:2000]


def _worth(reason: str) -> tuple[bool, bool, int]:
    """How much a reason says: a code, words of failure, length."""
    return bool(_CODED.search(reason)), bool(_FAILURE.search(reason)), len(reason)


def _whole(text: str) -> str:
    """The report without its politeness, for the classifier: lines from the first failure on."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    coded = [line for line in lines if re.search(r"\b[45]\d\d[ \-]|\b[45]\.\d\.\d", line)]
    return " ".join(coded or lines)[:2000]


def last_resort(data: bytes) -> tuple[set[str], set[str]]:
    """Temporary and permanent failures flufl.bounce finds in a mail."""
    import email

    from flufl.bounce import all_failures

    try:
        temporary, permanent = all_failures(email.message_from_bytes(data))
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError):
        return set(), set()  # a third party's parser over hostile input: no answer is an answer

    def texts(found: set[bytes]) -> set[str]:
        return {a.decode("ascii", "replace") for a in found if b"@" in a}

    return texts(temporary), texts(permanent)
