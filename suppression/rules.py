"""Which suppressions an attempt or an event brings or ends. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mailweir.contracts.events import UNPROVEN, EventType, Feedback
from suppression.entries import BadEntry, Entry, Reason, Scope, key_of

DAY = 86400.0
DOMAIN_DAYS = 7  # a domain without mail is looked at again
PAIR_DAYS = 90  # a recipient that refuses this sender

NO_USER = frozenset({"invalid_recipient", "inactive_mailbox"})
_CLEARED_BY_DELIVERY = (Reason.SOFT_BOUNCE, Reason.RECIPIENT_REFUSED, Reason.INVALID_DOMAIN)


class Subject(NamedTuple):
    """Whom it concerns: canonical recipient, envelope sender, tenant."""

    recipient: str
    sender: str
    tenant: str


class Change(NamedTuple):
    """Entries to add, and (keys, tenant, reasons) to remove."""

    add: tuple[Entry, ...] = ()
    remove: tuple[tuple[str, str | None, Sequence[Reason]], ...] = ()


def asked(
    suppress: str, category: str | None, who: Subject, at: float, event: str
) -> tuple[Entry, ...]:
    """Entries a classification asks for by ``recipient:``, ``recipient:180``, ``domain:7``, ``pair:90``.

    An address that does not exist is suppressed for everyone, a refused pair for its tenant only.
    Raises :class:`suppression.entries.BadEntry` for a wish nobody understands.
    """
    scope, _, days = suppress.partition(":")
    if days and not days.isdigit():
        raise BadEntry(f"suppress: {suppress!r} is not scope:days")
    until = at + float(days) * DAY if days else None
    if scope == "recipient":
        hard = category is None or category in NO_USER
        reason = Reason.HARD_BOUNCE if hard else Reason.SOFT_BOUNCE
        return (
            Entry(who.recipient, Scope.GLOBAL, reason, at, expires_at=until, source_event=event),
        )
    if scope == "domain":
        return (
            Entry(
                "@" + who.recipient.rpartition("@")[2],
                Scope.GLOBAL,
                Reason.INVALID_DOMAIN,
                at,
                expires_at=until or at + DOMAIN_DAYS * DAY,
                source_event=event,
            ),
        )
    if scope == "pair":
        if not who.sender:
            return ()  # the null sender sends reports, which nobody refuses twice
        return (
            Entry(
                key_of(f"{who.sender}>{who.recipient}"),
                Scope.TENANT,
                Reason.RECIPIENT_REFUSED,
                at,
                tenant=who.tenant,
                expires_at=until or at + PAIR_DAYS * DAY,
                source_event=event,
            ),
        )
    raise BadEntry(f"suppress: {scope!r} is none of recipient, domain, pair")


def unsubscribed(recipient: str, tenant: str, at: float, event: str) -> tuple[Entry, ...]:
    """One-click: nothing but transactional mail of this tenant any more (deliverability 5.5)."""
    return tuple(
        Entry(recipient, Scope.BUCKET, Reason.UNSUBSCRIBE, at, tenant, bucket, source_event=event)
        for bucket in ("marketing", "bulk")
    )


def fed_back(event: Feedback, who: Subject, at: float) -> Change:
    """What a normalised event changes. A complaint ends all mail of the
    tenant to this address."""
    source = event.event_id[:64]
    if UNPROVEN in event.tags:
        return Change()  # anyone can write such a mail about anyone
    if event.type is EventType.COMPLAINED:
        if event.category == "not-spam":
            return Change()  # RFC 5965 feedback-type not-spam says the opposite
        # a complaint nobody can assign to a tenant holds for all of them: the person is angry
        scope = Scope.TENANT if who.tenant else Scope.GLOBAL
        return Change((_complaint(who, scope, at, source),))
    if event.type is EventType.UNSUBSCRIBED:
        return Change(unsubscribed(who.recipient, who.tenant, at, source) if who.tenant else ())
    if event.type is EventType.SUBSCRIBED and who.tenant:
        return Change((), ((who.recipient, who.tenant, (Reason.UNSUBSCRIBE,)),))
    if event.type is EventType.DELIVERED:
        domain = "@" + who.recipient.rpartition("@")[2]
        return Change(
            (),
            (
                (who.recipient, None, _CLEARED_BY_DELIVERY),
                (domain, None, (Reason.INVALID_DOMAIN,)),
            ),
        )
    if event.suppress is not None:
        wish = f"{event.suppress.scope}:{event.suppress.days or ''}"
        return Change(asked(wish, event.category, who, at, source))
    return Change()


def _complaint(who: Subject, scope: Scope, at: float, source: str) -> Entry:
    tenant = who.tenant if scope is Scope.TENANT else ""
    return Entry(who.recipient, scope, Reason.COMPLAINT, at, tenant, source_event=source)
