"""What a reply means: category, class, who is to blame, whether and where to try again, what to suppress.

Procedure: rules of particular providers, then words anyone may use, then a strong enhanced code, then a
weak one, then the plain code and the stage. Text beats codes, because 5.7.1, 5.0.0, 5.1.0, 5.2.1, 4.7.0
and 5.4.1 are used for everything. Rules are data with their sources (``data/rules_*.yaml``); the figures
on real replies are in ``docs/classification.md``. Pure, bounded, never raises.
"""

from __future__ import annotations

import re
from functools import lru_cache

from mailweir.contracts.events import BounceClass, Classification, Suppress
from mailweir.mail.classify_rules import LOOSE, Asked, CategoryRow, Rule, rules
from mailweir.mail.providers import known_provider
from mailweir.mail.reply import MAX_CHARS, Reply, code_of, enhanced_of, read, retry_hint, stage_of

__all__ = ["classify", "code_of", "enhanced_of"]

PROVIDER, TEXT, STRONG, WEAK, PLAIN, STAGE = 0.95, 0.9, 0.8, 0.6, 0.5, 0.4
"""Confidence by what decided."""

DEFINITE = 0.7
"""Below this a hard verdict asks for no suppression: it takes a second one a day later."""

_GUESS = 0.75
_HEARSAY = 0.65  # the same, and neither stage nor code says that it is about the recipient
_LOOSE = 0.55  # single words


def classify(
    reply: str,
    *,
    provider: str | None = None,
    stage: str | None = None,
    first_contact: bool = False,
) -> Classification:
    """Classify a remote's reply, or the diagnostic text of a DSN.

    ``provider``: any name of the mailbox provider, if known. ``stage``: connect, banner, ehlo, starttls, auth,
    mail, rcpt, data, dot or dsn. ``first_contact``: this sender, recipient and source have not met, so a
    bare 450 to RCPT is greylisting.
    """
    return _classify(reply[: 2 * MAX_CHARS], known_provider(provider), stage, first_contact)


@lru_cache(maxsize=8192)
def _classify(
    text: str, provider: str | None, stage: str | None, first_contact: bool
) -> Classification:
    reply = read(text)
    stage = stage_of(stage) if stage else reply.stage
    if reply.code is not None and reply.code < 400:
        return _answer("unknown", reply, 1.0, "success")
    permanent = is_permanent(reply)
    asked = Asked(reply.code, reply.enhanced, permanent, provider, stage)
    rule = rules().first(reply.text, asked)
    if rule is not None and _hard(rule.category) and (stage == "auth" or reply.code in _LOGIN):
        # whatever is unknown or disabled here is our login
        return _answer("relay_denied", reply, PLAIN, f"code-{reply.code}", None, stage)
    if rule is not None:
        sure = PROVIDER if rule.providers or rule.enhanced else TEXT
        if rule.doubt:
            sure = _GUESS if reply.code or reply.enhanced else STAGE
            told = stage in ("rcpt", "dsn") or (reply.enhanced or "")[2:4] == "1."
            if not told and _hard(rule.category):
                sure = min(sure, _HEARSAY)
            if rule.doubt == LOOSE:
                sure = min(sure, _LOOSE)
            coded = _by_strong_code(reply, permanent, stage)
            both = rule.category == "inactive_mailbox" and coded and _hard(coded.category)
            if coded is not None and not both:
                return coded
            if rule.doubt == LOOSE and reply.code in _SYNTAX:
                return _by_code(reply, permanent, stage, first_contact)
        overruled = _by_precise_code(rule, reply, permanent, stage)
        if overruled is not None:
            return overruled
        if rule.id == "recipient-rejected":
            if stage in ("data", "dot"):
                return _answer("policy_block", reply, STAGE, "stage-dot")
            if reply.enhanced is not None and reply.enhanced[2:4] == "7.":
                return _answer("policy_block", reply, WEAK, f"enhanced-{reply.enhanced}")
        return _answer(rule.category, reply, sure, rule.id, rule.retry_after, stage)
    return _by_code(reply, permanent, stage, first_contact)


def _by_precise_code(
    rule: Rule, reply: Reply, permanent: bool, stage: str | None
) -> Classification | None:
    """What a code says more precisely than words anyone may use."""
    if rule.named:
        return None
    if rule.category in _VAGUE:
        coded = _by_strong_code(reply, permanent, stage)
        if coded is not None and coded.category in _PRECISE:
            many = coded.category == "too_many_recipients"
            if not many or "recip" in reply.text or "rcpt" in reply.text:
                return coded
    if _hard(rule.category) and reply.enhanced is not None and reply.enhanced[2:] != "1.7":
        coded = _by_strong_code(reply, permanent, stage)
        if coded is not None and coded.category in _OTHER_SUBJECTS:
            return coded
    syntax = reply.code in _SYNTAX and (reply.enhanced or "5.5.0")[2:4] == "5."
    if syntax and stage not in ("rcpt", "dsn") and _hard(rule.category):
        return _answer("protocol_error", reply, PLAIN, f"code-{reply.code}", None, stage)
    return None


def _hard(category: str) -> bool:
    return rules().categories[category].cls == "hard"


_VAGUE = frozenset({"rate_limited", "server_error", "policy_block"})
_PRECISE = frozenset({"mailbox_full", "auth_failure", "dns_config", "too_many_recipients"})
"""Categories whose enhanced code nobody uses for anything else, unlike 5.1.1 or 5.7.1."""

_OTHER_SUBJECTS = frozenset({"sender_rejected", "content_rejected", "auth_failure"})
"""Categories whose strong code (x.1.8, x.6.z, x.7.2z) says that no words are about the recipient.
Not x.1.7, which some say of the recipient's address."""

_SYNTAX = frozenset({500, 501, 502, 503, 504})
"""Codes that speak of the command (RFC 5321 4.2.1), unless the recipient's own command failed."""


def is_permanent(reply: Reply) -> bool:
    """5yz, by the first digit of the code, which outranks the enhanced code where they disagree; a
    reply without any code comes from a report of failure and counts as permanent, unless its words say
    otherwise."""
    if reply.code is not None:
        return reply.code >= 500
    if reply.enhanced is not None:
        return reply.enhanced[0] == "5"
    return not _PASSING.search(reply.text)


_PASSING = re.compile(
    r"\btemporar(?:y|ily) (?:\w+ )?(?:reject|refus|fail|defer|unavail|delay)|\bdeferred\b|^defer\b"
)


def _by_strong_code(reply: Reply, permanent: bool, stage: str | None) -> Classification | None:
    if reply.enhanced is None:
        return None
    row = rules().codes.get(reply.enhanced[2:])
    if row is None or row.weak:
        return None
    category = row.cat or (row.cat5 if permanent else row.cat4)
    if category is None or category == "delivered":
        return None
    return _answer(category, reply, STRONG, f"enhanced-{reply.enhanced}", None, stage)


def _by_code(
    reply: Reply, permanent: bool, stage: str | None, first_contact: bool
) -> Classification:
    coded = _by_strong_code(reply, permanent, stage)
    if coded is not None:
        return coded
    if reply.code in _LOGIN:
        return _answer("relay_denied", reply, PLAIN, f"code-{reply.code}", None, stage)
    early = stage in ("connect", "banner", "ehlo", "helo", "starttls", "mail")
    if reply.enhanced is not None and not (early and permanent):
        row = rules().codes.get(reply.enhanced[2:])
        category = (row.cat or (row.cat5 if permanent else row.cat4)) if row else None
        if category is not None and category not in ("unknown", "delivered"):
            return _answer(category, reply, WEAK, f"enhanced-{reply.enhanced}", None, stage)
    if stage in ("ehlo", "helo") and reply.code in (501, 504):
        return _answer("dns_config", reply, PLAIN, f"code-{reply.code}", None, stage)
    plain = _PLAIN.get(reply.code or 0)
    if plain is not None:
        return _answer(plain, reply, PLAIN, f"code-{reply.code}", None, stage)
    return _by_stage(reply, permanent, stage, first_contact)


_LOGIN = frozenset({530, 534, 535, 538})
"""Codes that speak of our login whatever the enhanced code says (RFC 4954 6)."""

_PLAIN = {
    454: "tls_required",
    455: "protocol_error",
    500: "protocol_error",
    501: "protocol_error",
    502: "protocol_error",
    503: "protocol_error",
    504: "protocol_error",
    521: "invalid_domain",
    523: "message_too_large",
    525: "inactive_mailbox",
    551: "invalid_recipient",
    555: "protocol_error",
    556: "invalid_domain",
    571: "policy_block",
}
"""Basic codes that mean one thing (RFC 5321 4.2, RFC 7504, RFC 4954, RFC 3207)."""


_WORD = re.compile(r"[^\W\d_]{2,}")
_FEW = 5
"""Of a refusal in more words that no rule knows, nobody can tell whom it means."""


def _by_stage(
    reply: Reply, permanent: bool, stage: str | None, first_contact: bool
) -> Classification:
    code = reply.code
    if code is None and reply.enhanced is None:
        return _answer("unknown", reply, STAGE, "nothing-known")
    rule = f"stage-{stage or 'none'}"
    if not permanent:
        if code == 450 and first_contact and stage in ("rcpt", None):
            return _answer("greylisted", reply, STAGE, rule)
        if code == 421 and stage in ("connect", "banner", "ehlo", "helo", "mail"):
            return _answer("rate_limited", reply, STAGE, rule)
        return _answer("server_error", reply, STAGE, rule)
    if stage in ("connect", "banner", "ehlo", "helo", "starttls", "mail", "data", "dot"):
        if code == 552:
            return _answer("message_too_large", reply, STAGE, rule)
        if code == 553 and stage == "mail":
            return _answer("sender_rejected", reply, STAGE, rule)
        return _answer("policy_block", reply, STAGE, rule, None, stage)
    if code == 552:
        return _answer("mailbox_full", reply, STAGE, rule)
    to_recipient = stage == "rcpt" or (stage is None and "<@>" in reply.text)
    if to_recipient and code in (550, 551, 553):
        if len(_WORD.findall(reply.text)) > _FEW or rules().unsure(reply.text, reply.enhanced):
            return _answer("policy_block", reply, STAGE, rule)
        return _answer("invalid_recipient", reply, STAGE, rule)
    if stage == "rcpt" and code == 554:
        return _answer("policy_block", reply, STAGE, rule)
    return _answer("unknown", reply, STAGE, rule)


def _answer(
    category: str,
    reply: Reply,
    confidence: float,
    rule: str,
    retry_after: float | None = None,
    stage: str | None = None,
) -> Classification:
    row: CategoryRow = rules().categories[category]
    if stage == "mail" and row.cls == "hard":
        # the remote does not know the recipient yet: who is unknown is the sender
        category, row = "sender_rejected", rules().categories["sender_rejected"]
    permanent = is_permanent(reply)
    early = stage in ("connect", "banner")
    cls = row.cls
    suppress = None
    if cls == "hard" and (not permanent or early):
        cls = "soft"
    if row.suppress is not None and permanent and not early and confidence >= DEFINITE:
        suppress = Suppress(row.suppress["scope"], row.suppress["days"])
    retry = row.retry5 if permanent else row.retry4
    if early and permanent and retry == "no":
        retry = "other"  # a banner speaks of the host or of us, never of this mail
    hint = retry_hint(reply.text)
    return Classification(
        category=category,
        cls=BounceClass(cls),
        blame=row.blame,
        retry=retry,
        suppress=suppress,
        retry_after=(hint if hint is not None else retry_after) if retry != "no" else None,
        confidence=confidence,
        rule=rule,
    )


def of_category(category: str, *, permanent: bool = True, rule: str = "told") -> Classification:
    """The classification of a category somebody else has decided on (an ESP's bounce type).

    Raises ``KeyError`` for a word that is none of our categories.
    """
    reply = Reply("", 550 if permanent else 450, None, None)
    return _answer(category, reply, STRONG, rule)
