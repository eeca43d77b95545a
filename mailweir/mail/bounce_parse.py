"""From the bytes of a returned mail to normalised events: what intake and ``mailweir feedback parse`` share.

Order: complaint (ARF, JMRP), RFC 3464 report, automatic answer or challenge, a bounce in words, flufl.bounce.
Our own token (VERP) is looked for first of all and names the job whatever the text claims. Pure; bounded;
never raises for what the mail holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import msgspec

from mailweir.contracts.events import BounceClass, EventType, Feedback, Suppress
from mailweir.mail import verp
from mailweir.mail.arf import Complaint, parse_arf
from mailweir.mail.autoreply import begins_as_answer, is_autoreply, is_challenge, is_receipt
from mailweir.mail.bounce_judge import certain, judged
from mailweir.mail.bounce_mail import (
    BounceMail,
    addresses,
    date_of,
    header_block,
    parse_mail,
    received_for,
)
from mailweir.mail.bounce_signs import (
    from_machine,
    has_code,
    is_notice,
    looks_like_bounce,
    passed_on,
    tells_failure,
)
from mailweir.mail.bounce_text import forwarded, last_resort, parse_text
from mailweir.mail.bounce_words import inline_original
from mailweir.mail.dsn import Failed, parse_dsn, parse_refusal
from mailweir.mail.reply import enhanced_of

MAX_AGE = 30 * 86400.0
"""An event is believed to be at most this old, seconds."""

_LINK = re.compile(r"/u/([A-Za-z0-9_-]{20,64})")
"""Our unsubscribe link (suppression.unsubscribe)."""

_TOKEN_HEADERS = (
    "to",
    "delivered-to",
    "x-original-to",
    "envelope-to",
    "x-envelope-to",
    "x-failed-recipients",
    "cc",
    "x-delivered-to",
    "apparently-to",
)


def parse_report(
    data: bytes,
    *,
    now: float,
    keys: Sequence[bytes] = (),
    envelope_to: str | None = None,
) -> list[Feedback]:
    """The events a mail to the bounce address carries: at least one, of type ``unknown`` when it is no
    feedback. ``keys`` are those VERP tokens may be signed with; ``envelope_to`` is the RCPT it came for."""
    mail = parse_mail(data)
    original = header_block(mail.original())
    job_id = _job(mail, original, keys, envelope_to, now)
    at = _occurred(mail.header("date"), now)
    digest = _digest(data, mail)
    return [
        msgspec.structs.replace(event, message_ids=_references(original))
        for event in _events(data, mail, original, now, at, digest, job_id)
    ]


def _events(
    data: bytes,
    mail: BounceMail,
    original: dict[str, list[str]],
    now: float,
    at: float,
    digest: str,
    job_id: int | None,
) -> list[Feedback]:
    complaints = parse_arf(mail)
    if complaints:
        return [_complaint(c, digest, n, now, job_id) for n, c in enumerate(complaints)]
    failures = parse_refusal(mail) if is_receipt(mail) else parse_dsn(mail)
    if failures:
        failures = _meant([_completed(f, mail, original) for f in failures], mail)
        return [_failure(f, digest, n, at, job_id, "dsn") for n, f in enumerate(failures)]
    bounce = looks_like_bounce(mail, ours=job_id is not None) and not is_receipt(mail)
    if bounce and from_machine(mail):
        failures = parse_dsn(mail, nested=True)
        if failures:
            return [_failure(f, digest, n, at, job_id, "dsn") for n, f in enumerate(failures)]
    if not bounce or "x-failed-recipients" not in mail.headers:
        answered = _answered(mail, original, digest, at, job_id, bounce)
        if answered is not None:
            return [answered]
    if bounce:
        failures = (
            parse_text(mail)
            or _resort(data)
            or _original_recipient(mail, original or header_block(inline_original(mail)))
        )
        if failures:
            failures = _meant(failures, mail)
            told = [_failure(f, digest, n, at, job_id, "bounce") for n, f in enumerate(failures)]
            if job_id is None and (passed_on(mail) or not is_notice(mail)):
                return [msgspec.structs.replace(event, suppress=None) for event in told]
            return told
    return [_nothing(digest, at, job_id)]


def _references(original: dict[str, list[str]]) -> tuple[str, ...]:
    """What the returned copy says of which mail it is: our reference, the token of its unsubscribe link,
    its Message-ID. Whoever looks the job up decides what each of them proves."""
    found = [value.strip() for value in original.get("x-mailweir-ref", ())[:1]]
    for value in original.get("list-unsubscribe", ())[:2]:
        found.extend(_LINK.findall(value)[:2])
    found.extend(value.strip().strip("<>")[:255] for value in original.get("message-id", ())[:1])
    return tuple(dict.fromkeys(text for text in found if text and text.isprintable()))


def _answered(
    mail: BounceMail,
    original: dict[str, list[str]],
    digest: str,
    at: float,
    job_id: int | None,
    bounce: bool,
) -> Feedback | None:
    category = None
    if not bounce and is_challenge(mail):
        category = "challenge"
    elif is_autoreply(mail) and not (bounce and _bounce_rather(mail)):
        category = "auto_reply"
    if category is None:
        return None
    sender = addresses(mail.headers.get("from", []))
    return Feedback(
        event_id=f"mail:{digest}:0",
        type=EventType.AUTORESPONDED,
        provider="autoreply",
        occurred_at=at,
        recipient=sender[0] if sender else None,
        job_id=job_id,
        category=category,
        cls=BounceClass.NONE,
        reply=mail.header("subject")[:200] or None,
    )


def _bounce_rather(mail: BounceMail) -> bool:
    """Whether what looks like a bounce and like an automatic answer is a bounce: mail systems mark theirs
    Auto-Submitted too. One that a person's or a ticket system's address answered with is a bounce only if
    it quotes a reply."""
    submitted = mail.header("auto-submitted").lower()
    if begins_as_answer(mail):
        return False
    if from_machine(mail):
        return True
    if not submitted.startswith("auto-"):
        return False
    if not submitted.startswith("auto-replied"):
        return True
    return any(has_code(f.reply) for f in parse_text(mail))


def _nothing(digest: str, at: float, job_id: int | None) -> Feedback:
    return Feedback(
        event_id=f"mail:{digest}:0",
        type=EventType.UNKNOWN,
        provider="mail",
        occurred_at=at,
        job_id=job_id,
        category="unknown",
        cls=BounceClass.NONE,
    )


def _job(
    mail: BounceMail,
    original: dict[str, list[str]],
    keys: Sequence[bytes],
    envelope_to: str | None,
    now: float,
) -> int | None:
    """The job our token names: in the envelope, in the report's headers, in the original's."""
    if not keys:
        return None
    places = [envelope_to or ""]
    for name in _TOKEN_HEADERS:
        places.extend(mail.headers.get(name, ()))
    for name in ("return-path", "x-original-return-path", "sender", "errors-to", "x-mailfrom"):
        places.extend(original.get(name, ()))
    for part in mail.parts:
        if part.kind == "message/feedback-report":
            places.extend(header_block(part.text).get("original-mail-from", ()))
    for place in places:
        found = verp.parse(place, keys, now)
        if found is not None:
            return found
    return None


def _occurred(value: str, now: float) -> float:
    at = date_of(value) if value else None
    return now if at is None else min(max(at, now - MAX_AGE), now)


def _digest(data: bytes, mail: BounceMail) -> str:
    """Names this mail: its Message-ID with its beginning, so that a second copy is the same event."""
    name = mail.header("message-id").encode() or data
    return hashlib.sha256(name + b"\0" + mail.header("from").encode()).hexdigest()[:32]


def _completed(failed: Failed, mail: BounceMail, original: dict[str, list[str]]) -> Failed:
    """What the machine part left out, from the rest of the mail."""
    recipient, reply = failed.recipient, failed.reply
    if recipient is None or len(reply) < 12:
        words = parse_text(mail)
        match = [
            w
            for w in words
            if recipient and w.recipient and w.recipient.lower() == recipient.lower()
        ]
        pick = match[0] if match else (words[0] if len(words) == 1 else None)
        if pick is not None:
            recipient = recipient or pick.recipient
            if len(reply) < 12 and tells_failure(pick.reply) and not certain(failed.status):
                own = failed.status if failed.status and enhanced_of(pick.reply) is None else ""
                reply = f"{own} {pick.reply}".strip()
    if recipient is None:
        known = addresses(mail.headers.get("x-failed-recipients", []) or original.get("to", []))
        recipient = known[0] if len(known) == 1 else received_for(original)
    return msgspec.structs.replace(failed, recipient=recipient, reply=reply)


def _meant(failures: list[Failed], mail: BounceMail) -> list[Failed]:
    """Those we mailed instead of those a host passed our mail on to."""
    passed = forwarded(mail)
    return [
        msgspec.structs.replace(f, recipient=passed.get((f.recipient or "").lower(), f.recipient))
        for f in failures
    ]


def _original_recipient(mail: BounceMail, original: dict[str, list[str]]) -> list[Failed]:
    """A bounce that names nobody: the one the original was for."""
    known = addresses(original.get("x-original-to", []) or original.get("to", []))
    lines = (" ".join(line.split()) for line in mail.texts()[:8000].splitlines())
    text = "\n".join(line for line in lines if line)[:2000]
    recipient = known[0] if len(known) == 1 else received_for(original)
    return [Failed(recipient, "failed", None, text)]


def _resort(data: bytes) -> list[Failed]:
    temporary, permanent = last_resort(data)
    return [Failed(a, "delayed", None, "") for a in sorted(temporary)] + [
        Failed(a, "failed", None, "") for a in sorted(permanent)
    ]


_ACTIONS = {
    "delayed": EventType.DEFERRED,
    "delivered": EventType.DELIVERED,
    "relayed": EventType.SENT,
    "expanded": EventType.SENT,
}


def _failure(
    failed: Failed, digest: str, number: int, at: float, job_id: int | None, provider: str
) -> Feedback:
    event = _ACTIONS.get(failed.action, EventType.BOUNCED)
    reply = re.sub(r"^\s*(?:smtp|x-[\w-]{1,30})\s*;\s*", "", failed.reply, flags=re.IGNORECASE)
    reply = " ".join(reply.split())
    base = Feedback(
        event_id=f"mail:{digest}:{number}",
        type=event,
        provider=provider,
        occurred_at=at,
        recipient=failed.recipient,
        job_id=job_id,
        remote_host=failed.remote_host,
        cls=BounceClass.NONE,
        status=failed.status or enhanced_of(failed.reply),
        reply=reply[:2000] or None,
    )
    if event in (EventType.DELIVERED, EventType.SENT):
        return base
    found = judged(failed)
    cls, suppress = found.cls, found.suppress
    if event is EventType.DEFERRED:
        cls = BounceClass.SOFT if cls is BounceClass.HARD else cls
        suppress = None
    return msgspec.structs.replace(base, category=found.category, cls=cls, suppress=suppress)


def _complaint(
    complaint: Complaint, digest: str, number: int, now: float, job_id: int | None
) -> Feedback:
    guilty = complaint.type is not EventType.UNKNOWN
    return Feedback(
        event_id=f"mail:{digest}:{number}",
        type=complaint.type,
        provider="arf",
        occurred_at=_occurred(complaint.arrival, now),
        recipient=complaint.recipient,
        job_id=job_id,
        category=None if guilty else complaint.feedback_type[:32],
        cls=BounceClass.NONE,
        suppress=Suppress("recipient", None) if guilty else None,
        user_agent=complaint.user_agent,
        reply=f"feedback-type: {complaint.feedback_type[:64]}",
    )
