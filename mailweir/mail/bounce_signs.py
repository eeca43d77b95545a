"""What tells a bounce from other mail: subject, sender, the words of failure and of delay."""

from __future__ import annotations

import re

from mailweir.mail.bounce_mail import BounceMail, addresses
from mailweir.mail.bounce_words import inline_original, report_text

_SUBJECT = re.compile(
    r"undeliver|not (?:be )?deliver|non[- ]?deliver|deliver\w* (?:status|failure|failed|"
    r"notification|problem|error|report|"
    r"delayed|has failed|temporarily|incomplete|warning)|fail\w* (?:notice|delivery|mail|"
    r"to deliver|message)|failure notice|"
    r"(?:mail|message|e-?mail)\w* (?:system|delivery|status|could not|error|failure|failed|"
    r"not delivered|undeliver|bounced|"
    r"cannot|rejected|returned|subsystem)|return(?:ed|ing) (?:mail|message|to sender|e-?mail)|"
    r"\bbounce[ds]?\b|"
    r"warning: (?:could not|message|mail)|could not send|cannot send|error sending|rejected (?:mail|message)|"
    r"nondeliver|mailer-daemon|"
    r"unzustellbar|nicht zugestellt|zustell\w*|unable to deliver|"
    r"non (?:remis|d[ée]livr|distribu)|[ée]chec|impossible de remettre|"
    r"no (?:se )?(?:ha )?(?:podido |pudo )?(?:entreg|envi)|devuelto|error de entrega|rebotado|"
    r"n[ãa]o (?:foi )?(?:entregue|poss[íi]vel)|devolvid|falha|"
    r"mancata consegna|non recapitabil|non consegn|recapito|"
    r"onbestelbaar|niet (?:worden )?(?:bezorgd|bestelbaar|afgeleverd)|"
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
    r"mdaemon|"
    r"microsoftexchange|system administrator|\bmaileragent|no-?reply-?dsn|mail system|"
    r"internet mail (?:service|delivery)",
    re.IGNORECASE,
)
NOBODY = re.compile(
    r"(?:mailer[-_. ]?daemon|post[-_]?master|mdaemon|microsoftexchange)[^@]{0,60}@|"
    r"[^@]{0,80}(?:bounces?[+=\-]|[-+=]bounces?@)",
    re.IGNORECASE,
)
"""Addresses of mail systems and return paths: never whom a report is about."""
_STILL_TRIED = re.compile(
    r"warning (?:message )?only|do not need to re-?send|will (?:be|keep|"
    r"continue)(?: \w+){0,3} (?:re)?(?:try|trying|tried|retry\w*|attempt\w*)|"
    r"(?:attempts?|retries) (?:\w+ ){0,3}?(?:will )?(?:continue|be made)|will be retried|"
    r"wird weiterhin versucht|"
    r"sera (?:r[ée]essay|retent)|seguir[áa] intent",
    re.IGNORECASE,
)
_DELAYED = re.compile(
    r"not yet been delivered|still undelivered|delivery (?:is |"
    r"has been |was )?(?:temporarily )?(?:delayed|suspended)|"
    r"is (?:being )?delayed|delayed (?:for|mail|delivery)|(?:delivery|mail|message) delay|"
    r"temporarily deferred|"
    r"no action is required|delivery to the following recipients? has been delayed",
    re.IGNORECASE,
)
_GIVEN_UP = re.compile(
    r"permanent(?:ly)? (?:fail|fatal|error)|given up|giving up|fail(?:ed|ure) permanently",
    re.IGNORECASE,
)
_FAILED = re.compile(
    r"could not be delivered|was not delivered|undeliverable",
    re.IGNORECASE,
)
FAILURE = re.compile(
    r"fail|undeliver|not (?:be )?(?:deliver|found|exist|reach|known|accept|listed)|unknown|"
    r"invalid|not a valid|reject|refus|denied|"
    r"error|unable|couldn.?t|cannot|can.?t|could not|no such|does not|did not|doesn.?t|full|"
    r"quota|exceed|disabled|"
    r"inactive|blocked|bounced|unreach|\b[45]\d\d[ -]|\b[45]\.\d\.\d|unzustell|nicht|inconnu|"
    r"no existe|desconocid|"
    r"不存在|失败|無法|无法|届|エラー|не |нет ",
    re.IGNORECASE,
)
CODED = re.compile(r"\b[45]\d\d[ \-]|\b[45]\.\d\.\d|timed out|unknown|unrouteable", re.IGNORECASE)
"""A reply code, or words only a mail server writes."""
_CAME_BACK = re.compile(
    r"\bnot (?:yet )?(?:be(?:en)? )?(?:deliver|reach|sent\b|receive|accepted|processed)|"
    r"\b(?:could|can|was|did|is|has|were)n.?t (?:be(?:en)? |able to )?(?:deliver|reach|sen[dt])|"
    r"undeliver|unable to (?:deliver|send|find|process|reach)|cannot (?:be )?(?:deliver|sen[dt])|"
    r"deliver\w*\b.{0,60}(?:fail|error|abort|delay|problem|unsuccess|trouble|impossible)|"
    r"fail(?:ed|ure)?\b.{0,40}(?:deliver|recipient|address)|return(?:ed|ing) to (?:you|the sender)|"
    r"permanent(?:ly)? (?:fatal )?(?:error|fail)|(?<![\d.])[45]\d\d[ \-](?!\d)|"
    r"(?<![\d.])[45]\.\d\.\d{1,3}(?![\d.])|no such (?:user|recipient|mailbox|address)|not a valid|"
    r"(?:user|recipient|mailbox|account|address)\b.{0,60}(?:unknown|not |full\b|quota|"
    r"n.t |disabled|invalid|reject|suspended)|(?:unknown|invalid|bad) (?:user|recipient|address)|"
    r"over quota|(?:e-?mail|mail|message)\b.{0,40}(?:rejected|blocked|refused|returned|bounced)|"
    r"nicht (?:zugestellt|erreich|aus)|unzustell|inconnu|non (?:remis|distribu|consegn)|"
    r"no existe|desconocid|no (?:se )?pud|n[ãa]o (?:foi|p[ôo]de|existe)|non esiste|niet bezorg|"
    r"не (?:может|найден|существ|достав|удалось)|nie (?:istnieje|mo[żz]na|zosta)|inte (?:levere|hitt)|"
    r"不存在|失败|失敗|無法|无法|退|届|エラー|存在しません|없|반송",
    re.IGNORECASE,
)
"""First words of a report; a subject alone, or a mail system's name alone, is also on other mail."""
_FIRST_WORDS = 2500
_QUOTED = re.compile(r"^[ \t]*>.*\n?", re.MULTILINE)
_LIST = ("list-unsubscribe", "list-post", "feedback-id")
_ANSWER = re.compile(
    r"\s*(?:re|aw|antw|sv|vs|odp|rv|res|ynt|回复|答复|返信)\s*(?:\[\d+\])?[:：]", re.IGNORECASE
)
"""A person answering; MTAs put their own words first ("Undeliverable: Re: ...")."""


_PASSED_ON = re.compile(
    r"\s*(?:fwd?|wg|tr|enc|doorst|vb|i|pd|转发|転送)\s*(?:\[\d+\])?[:：]", re.IGNORECASE
)


_TO_POSTMASTER = re.compile(
    r"\s*(?:postfix (?:smtp|lmtp) (?:server|client): errors from|message \S{6,40} has been frozen)",
    re.IGNORECASE,
)
"""What Postfix (notify_classes) and Exim (freeze_tell) tell their postmaster: nothing of ours came back."""


def passed_on(mail: BounceMail) -> bool:
    """Whether a person passes on, or asks about, a bounce: what it says may be of another's mail."""
    return bool(_PASSED_ON.match(mail.header("subject"))) and not from_machine(mail)


def has_code(words: str) -> bool:
    """Whether words hold a reply code or words only a mail server writes."""
    return bool(CODED.search(words))


def tells_failure(words: str) -> bool:
    """Whether words speak of a failure at all: footers of scanners stand where a reason would."""
    return bool(CODED.search(words) or FAILURE.search(words))


def from_machine(mail: BounceMail) -> bool:
    """Whether a mail system, not a person or a program in a person's name, wrote the mail. A Sender says
    nothing where there is a From: mailing lists put their return path there."""
    author = mail.header("from").strip()
    if "x-failed-recipients" in mail.headers or author == "<>":
        return True
    return bool(_MACHINE.search(author or mail.header("sender")))


def looks_like_bounce(mail: BounceMail, ours: bool = False) -> bool:
    """Whether a mail came back: its headers say so, or two of subject, sender and first words do. What
    comes in a person's or a program's name also has to bring what letters do not. ``ours``: it brings our
    token, which no person writes to."""
    if "x-failed-recipients" in mail.headers or mail.report_type == "delivery-status":
        return True
    machine = from_machine(mail)
    subject = mail.header("subject")
    if _TO_POSTMASTER.match(subject) or any(part.kind == "text/calendar" for part in mail.parts):
        return False
    if not machine and (_ANSWER.match(subject) or any(name in mail.headers for name in _LIST)):
        return False
    told = _tells(mail)
    if machine and told:
        return True
    words = report_text(mail)
    if not machine:
        if not told or not (ours or _brings_back(mail) or _to_return_path(mail)):
            return False
        words = _QUOTED.sub("", words)  # a ticket system's answer quotes what it answers
    return bool(_CAME_BACK.search(words[:_FIRST_WORDS]))


def is_notice(mail: BounceMail) -> bool:
    """Whether what looks like a bounce in words is a mail system's notice for certain: its postmaster writes
    letters, and programs write of bounces, as well."""
    if _brings_back(mail):
        return True
    marked = any(name in mail.headers for name in _MARKS) or _REPLY.search(report_text(mail))
    return from_machine(mail) and bool(marked or _tells(mail))


_MARKS = ("auto-submitted", "x-ms-exchange-message-is-ndr", "x-ms-embedded-report", "x-dsncontext")
"""What mail systems write on their notices: RFC 3834, Exchange."""
_REPLY = re.compile(r"^[\s>*<|#\"'\-]{0,12}[45]\d\d[ \-]|\bsaid: {0,2}[45]\d\d", re.MULTILINE)
"""A reply quoted as such, not mentioned in a sentence."""
_RETURN_PATH = re.compile(
    r"(?:[^@]{0,100}[-+._=])?(?:bounces?|returns?|errors?|verp)(?:[-+._=\d][^@]{0,100})?@|"
    r"[^@]{1,100}-(?:admin|owner)@",
    re.IGNORECASE,
)


def _to_return_path(mail: BounceMail) -> bool:
    """Whether a mail went to what looks like a return path: people write to senders."""
    return any(_RETURN_PATH.match(a) for a in addresses(mail.headers.get("to", [])))


def _brings_back(mail: BounceMail) -> bool:
    """Whether a mail brings what a mail system's notice brings and a letter, a shop's or a program's message
    does not: a copy of the original or its null return path (RFC 5321 4.5.5)."""
    return bool(
        mail.original() or inline_original(mail) or mail.header("return-path").strip() == "<>"
    )


def _tells(mail: BounceMail) -> bool:
    """Whether the subject says that a mail came back, or it comes from nobody with another one."""
    return bool(_SUBJECT.search(mail.header("subject"))) or _came_from_nobody(mail)


def _came_from_nobody(mail: BounceMail) -> bool:
    """Whether a mail with the null return path (RFC 5321 4.5.5) brings another one back."""
    return mail.header("return-path").strip() == "<>" and bool(mail.original())


def is_delay(mail: BounceMail, text: str) -> bool:
    """Whether the reporter is still trying."""
    head = mail.header("subject") + "\n" + text[:4000]
    if _GIVEN_UP.search(head):
        return False
    if _STILL_TRIED.search(head):
        return True  # "could not be delivered for 4 hours. It will be retried ..."
    return bool(_DELAYED.search(head)) and not _FAILED.search(head)
