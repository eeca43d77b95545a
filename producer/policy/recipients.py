"""Who gets the message: parsed, each once, with what was wrong with the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mailweir.contracts.job import JobStatus
from mailweir.contracts.submit import Recipient, Scalar, SubmitRequest
from mailweir.mail.address import (
    Address,
    InvalidAddress,
    Mailbox,
    mixed_script,
    parse,
    parse_mailbox,
    split_mailboxes,
)
from mailweir.mail.mime_scan import Scanned
from producer.policy.refusal import Invalid, TooLarge


class Target(NamedTuple):
    """One recipient of the message."""

    kind: str  # to | cc | bcc
    field: str  # path in the request
    box: Mailbox
    variables: dict[str, Scalar] | None
    note: str | None  # shown beside the job's status


class Targets(NamedTuple):
    """Recipients in order, each address once; ``shown`` keeps who stands in To and Cc."""

    each: list[Target]
    shown: list[tuple[str, Mailbox]]
    duplicates: list[tuple[str, Address]]  # as given, and the address that is already there
    refused: list[JobStatus]


def collect(request: SubmitRequest, scanned: Scanned | None, limit: int) -> Targets:
    """Recipients of a request, or of a ready message's own To, Cc and Bcc when it names none.

    Raises :class:`TooLarge` before anything is parsed, :class:`Invalid` with the recipient's path
    (unless the request is ``partial``).
    """
    given: list[tuple[str, str, str | Recipient]] = [
        (kind, f"{kind}[{i}]", item)
        for kind, items in (("to", request.to), ("cc", request.cc), ("bcc", request.bcc))
        for i, item in enumerate(items)
    ]
    if not given and scanned is not None:
        given = _from_headers(scanned)
    if not given:
        raise Invalid("to", "at least one recipient")
    if len(given) > limit:
        raise TooLarge("to", f"{len(given)} recipients; one call may have {limit}")
    found = Targets([], [], [], [])
    seen: dict[str, Address] = {}
    for kind, field, item in given:
        text = item if isinstance(item, str) else item.email
        try:
            box = _box(item)
        except InvalidAddress as error:
            if not request.partial:
                raise Invalid(field, error.why) from None
            found.refused.append(JobStatus(text[:320], "", "refused", error.why))
            continue
        key = box.address.text.lower()
        if key in seen:
            found.duplicates.append((text, seen[key]))
            continue
        seen[key] = box.address
        if kind != "bcc":
            found.shown.append((kind, box))
        note = "mixed_script" if mixed_script(box.address.domain) else None
        variables = None if isinstance(item, str) else item.variables
        found.each.append(Target(kind, field, box, variables, note))
    return found


def _box(item: str | Recipient) -> Mailbox:
    if isinstance(item, str):
        return parse_mailbox(item) if "<" in item else Mailbox("", parse(item))
    return Mailbox(item.name or "", parse(item.email))


def _from_headers(scanned: Scanned) -> list[tuple[str, str, str | Recipient]]:
    out: list[tuple[str, str, str | Recipient]] = []
    values: list[tuple[str, str]] = [
        (f.name, f.value) for f in scanned.fields if f.name in ("to", "cc")
    ]
    values += [("bcc", value) for value in scanned.bcc]
    for kind, value in values:
        try:
            items: Sequence[str] = split_mailboxes(value)
        except InvalidAddress as error:
            raise Invalid(f"raw.{kind}", error.why) from None
        out += [(kind, f"raw.{kind}[{i}]", _bare(item)) for i, item in enumerate(items)]
    return out


def _bare(item: str) -> str:
    """The address of a header's member: its shown name stays in the header, untouched."""
    item = item.strip()
    if item.endswith(">"):
        return item[:-1].rpartition("<")[2]
    return item
