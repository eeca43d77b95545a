"""The story of one submission: from what was asked to a message ready to commit, or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec

from mailweir.contracts.credential import ApiKey
from mailweir.contracts.job import (
    Accepted,
    Content,
    ContentKind,
    JobMeta,
    JobStatus,
    NewJob,
    NewMessage,
    Wishes,
)
from mailweir.contracts.submit import SubmitRequest, TemplateData
from mailweir.mail import content, headers, skeleton
from mailweir.mail.address import InvalidAddress, parse_mailbox
from mailweir.mail.mime_build import Attachment, InvalidContent
from mailweir.mail.mime_scan import InvalidMessage, Scanned
from mailweir.mail.providers import lane_of
from producer.policy import fields, wishes
from producer.policy.lines import (
    Shared,
    UnsubscribeUrl,
    check_unsubscribe,
    job_lines,
    message_lines,
    visible_lines,
)
from producer.policy.recipients import Targets, collect
from producer.policy.refusal import Forbidden, Invalid, TooLarge
from producer.policy.senders import who_sends

_RULE_HEADERS = 50  # headers kept for rules to match on
_RULE_HEADER_LENGTH = 200


class Rules(NamedTuple):
    """What the installation allows, and how it writes an unsubscribe link.

    ``unsubscribe_url(job_id, tenant, bucket, recipient)`` gives the one-click URL of a job.
    """

    max_recipients: int
    max_body: int  # bytes of content
    max_headers: int
    max_header: int
    max_parts: int
    sender_domain: str  # for Message-IDs where there is no From domain
    unsubscribe_url: UnsubscribeUrl


class Stored(NamedTuple):
    """A stored template of the caller's tenant."""

    id: int
    body: bytes  # encoded skeleton
    skeleton: skeleton.Skeleton


class Built(NamedTuple):
    """What became of a submission. Without ``message`` no recipient was usable (``partial`` only)."""

    message: NewMessage | None
    duplicates: tuple[tuple[str, str], ...]  # as given, address it repeats
    refused: tuple[JobStatus, ...]
    notes: dict[str, str]  # address -> what is unusual about it
    dropped: tuple[str, ...]  # names of the caller's header fields that do not leave us

    def answer(self, accepted: Accepted | None) -> Accepted:
        """The door's answer: the committed jobs, then what was repeated or refused."""
        jobs = accepted.jobs if accepted else ()
        if self.notes:
            jobs = tuple(
                msgspec.structs.replace(job, reason=self.notes.get(job.recipient)) for job in jobs
            )
        ids = {job.recipient: job.id for job in jobs} if self.duplicates else {}
        more = tuple(
            JobStatus(given, ids.get(address, ""), "duplicate")
            for given, address in self.duplicates
        )
        return Accepted(
            id=accepted.id if accepted else "",
            jobs=jobs + more + self.refused,
            duplicate=accepted.duplicate if accepted else False,
        )


def template_id(request: SubmitRequest) -> str | None:
    """Id of the stored template a request names: the shell looks it up before :func:`build`."""
    return request.template if isinstance(request.template, str) else None


def build(
    request: SubmitRequest,
    key: ApiKey,
    now: float,
    rules: Rules,
    *,
    ids: Callable[[int], Sequence[int]],
    stored: Stored | None = None,
) -> Built:
    """Check everything a caller asked for and make the message of it.

    ``ids(count)`` gives new ids, ``stored`` is the template the request names. Raises a
    :class:`~producer.policy.refusal.Refusal` with the field's path; nothing is stored then.
    """
    request_hash = hash_request(request)
    scanned = _scan(request, rules)
    request, free = _own_headers(request, scanned, key, rules)
    bucket = fields.bucket(request.bucket)
    start, end = fields.times(request.send_at, request.expires_at, now)
    sender, mail_from = who_sends(request, scanned, key)
    targets = collect(request, scanned, rules.max_recipients)
    message_id, *job_ids = ids(1 + len(targets.each))
    has_link = check_unsubscribe(request, scanned, free, bucket)

    domain = sender.address.domain if sender else rules.sender_domain
    shared = Shared(request, key, bucket, sender, domain, has_link)
    personal = request.template is not None
    made, skeleton_used = _content(
        request, scanned, shared, targets, free, message_id, stored, rules
    )
    jobs = []
    for job_id, target in zip(job_ids, targets.each, strict=True):
        variables: dict[str, Any] | None = None
        if skeleton_used is not None:
            own = (
                request.variables
                if target.variables is None
                else request.variables | target.variables
            )
            try:
                variables = skeleton_used.check(own, f"{target.field}.variables")
            except InvalidContent as error:
                if not request.partial:
                    raise Invalid(error.field, error.why) from None
                why = f"{error.field.removeprefix(target.field + '.')}: {error.why}"
                targets.refused.append(JobStatus(target.box.address.text, "", "refused", why))
                continue
        jobs.append(
            NewJob(
                id=job_id,
                recipient=target.box.address.text,
                mail_from=mail_from,
                lane=lane_of(target.box.address.domain),
                variables=variables,
                prepend=job_lines(shared, rules.unsubscribe_url, job_id, target, personal),
            )
        )
    notes = {t.box.address.text: t.note for t in targets.each if t.note}
    extra = tuple((given, address.text) for given, address in targets.duplicates)
    dropped = scanned.dropped if scanned else ()
    if not jobs:
        return Built(None, (), tuple(targets.refused), {}, dropped)
    message = NewMessage(
        id=message_id,
        tenant=key.tenant,
        bucket=bucket,
        priority=fields.priority(request.priority),
        content=made,
        meta=_meta(
            request,
            key,
            shared,
            scanned,
            free,
            start,
            message_lines(shared, scanned, message_id, now, free),
        ),
        jobs=tuple(jobs),
        send_at=max(now, start or now),
        expires_at=end,
        idempotency_key=fields.idempotency_key(request.idempotency_key),
        request_hash=request_hash,
    )
    return Built(message, extra, tuple(targets.refused), notes, dropped)


def hash_request(request: SubmitRequest) -> bytes:
    """What a repeated call must agree with (P5): every field but the key itself."""
    plain = msgspec.structs.replace(request, idempotency_key=None)
    try:
        return sha256(msgspec.msgpack.encode(plain, order="deterministic")).digest()
    except UnicodeEncodeError:
        raise Invalid(None, "a text has a lone surrogate, which is no character") from None


def _scan(request: SubmitRequest, rules: Rules) -> Scanned | None:
    ways = [
        name
        for name, given in (
            ("raw", request.raw is not None),
            ("template", request.template is not None),
            (
                "text, html or attachments",
                bool(request.text is not None or request.html is not None or request.attachments),
            ),
        )
        if given
    ]
    if len(ways) != 1:
        raise Invalid(
            "text",
            "give exactly one of raw, template, or text/html/attachments, not "
            + (" and ".join(ways) or "none"),
        )
    if request.raw is None:
        return None
    for name in ("subject", "reply_to"):
        if getattr(request, name):
            raise Invalid(name, "a raw message brings its own headers")
    if len(request.raw) > rules.max_body:
        raise TooLarge("raw", f"{len(request.raw)} bytes; a message may have {rules.max_body}")
    try:
        return content.scan(
            request.raw,
            max_headers=rules.max_headers,
            max_header=rules.max_header,
            max_parts=rules.max_parts,
        )
    except InvalidMessage as error:
        raise Invalid("raw", error.why) from None


def _own_headers(
    request: SubmitRequest, scanned: Scanned | None, key: ApiKey, rules: Rules
) -> tuple[SubmitRequest, list[tuple[str, str]]]:
    """Take the wishes out of the headers; what stays are the free headers, checked."""
    if len(request.headers) > rules.max_headers:
        raise Invalid("headers", f"more than {rules.max_headers} header fields")
    may_route = "route" in key.scopes
    if (request.pool or request.route) and not may_route:
        raise Forbidden("pool" if request.pool else "route", "this API key has no scope 'route'")
    own = list(scanned.own) if scanned else []
    free: list[tuple[str, str]] = []
    for name, value in request.headers.items():
        path = f"headers.{name[: headers.MAX_NAME]}"
        try:
            checked = headers.check_value(name, value)
            if name.lower().startswith(headers.OWN_PREFIX):
                own.append((name.lower().removeprefix(headers.OWN_PREFIX), checked))
                continue
            free.append((headers.check_name(name), checked))
            headers.line(name, checked)
        except headers.InvalidHeader as error:
            raise Invalid(path, error.why) from None
    if scanned is not None and free:
        raise Invalid("headers", "a raw message brings its own headers")
    if sum(len(name) + len(value) for name, value in free) > rules.max_header:
        raise Invalid("headers", f"together larger than {rules.max_header} characters")
    for index, value in enumerate(request.reply_to):
        try:
            parse_mailbox(value)
            headers.line("Reply-To", value)
        except (InvalidAddress, headers.InvalidHeader) as error:
            raise Invalid(f"reply_to[{index}]", error.why) from None
    names = [name.lower() for name, _ in free]
    if len(set(names)) != len(names):
        raise Invalid("headers", "a name stands there twice")
    return wishes.apply(request, own, may_route=may_route), free


def _content(
    request: SubmitRequest,
    scanned: Scanned | None,
    shared: Shared,
    targets: Targets,
    free: list[tuple[str, str]],
    message_id: int,
    stored: Stored | None,
    rules: Rules,
) -> tuple[Content, skeleton.Skeleton | None]:
    try:
        if scanned is not None:
            body = scanned.content
            return _stamped(message_id, ContentKind.MIME, body, rules), None
        if isinstance(request.template, TemplateData):
            compiled = compile_data(request.template)
            return _stamped(message_id, ContentKind.SKELETON, compiled.encode(), rules), compiled
        if request.template is not None:
            if stored is None:
                raise Invalid("template", "there is no such template")
            content_made = _stamped(stored.id, ContentKind.SKELETON, stored.body, rules)
            return content_made, stored.skeleton
        body = content.build(
            visible_lines(request, shared, targets, free),
            text=request.text,
            html=request.html,
            attachments=[
                Attachment(a.filename, a.content_type, a.content, a.content_id)
                for a in request.attachments
            ],
            seed=message_id.to_bytes(8, "big"),
        )
        return _stamped(message_id, ContentKind.MIME, body, rules), None
    except InvalidContent as error:
        raise Invalid(error.field, error.why) from None
    except headers.InvalidHeader as error:
        raise Invalid(error.name.lower(), error.why) from None


def compile_data(data: TemplateData) -> skeleton.Skeleton:
    """Compile a submitted template. Raises :class:`Invalid` with the path inside ``template``."""
    try:
        return skeleton.compile_template(
            data.subject,
            data.text,
            data.html,
            [
                Attachment(a.filename, a.content_type, a.content, a.content_id)
                for a in data.attachments
            ],
        )
    except InvalidContent as error:
        raise Invalid(f"template.{error.field}", error.why) from None
    except headers.InvalidHeader as error:
        raise Invalid("template.subject", error.why) from None


def _stamped(content_id: int, kind: ContentKind, body: bytes, rules: Rules) -> Content:
    if len(body) > rules.max_body * 2:  # base64 and headers are not the caller's bytes
        raise TooLarge(None, "the message is too large once encoded")
    return Content(content_id, kind, body, sha256(body).digest())


def _meta(
    request: SubmitRequest,
    key: ApiKey,
    shared: Shared,
    scanned: Scanned | None,
    free: list[tuple[str, str]],
    start: float | None,
    prepend: str,
) -> JobMeta:
    known = [(f.name, f.value) for f in scanned.fields] if scanned else free
    skip = ("content-", "mime-", "received", "dkim-", "arc-", "references")
    rule_headers = {
        name.lower(): value[:_RULE_HEADER_LENGTH]
        for name, value in known
        if not name.lower().startswith(skip)
    }
    return JobMeta(
        tags=fields.tags(request.tags),
        metadata=fields.metadata(request.metadata),
        headers=dict(list(rule_headers.items())[:_RULE_HEADERS]),
        campaign=fields.label("campaign", request.campaign),
        engagement=fields.engagement(request.engagement),
        risk=fields.label("risk", request.risk, 64),
        residency=fields.label("residency", request.residency, 64),
        api_key=key.id,
        sending_domain=shared.sender.address.domain if shared.sender else None,
        unsubscribe=request.unsubscribe is True and not shared.has_link,
        send_at=start,
        sandbox=request.sandbox,
        wishes=Wishes(
            pool=fields.label("pool", request.pool, 64),
            route=fields.label("route", request.route, 64),
        ),
        prepend=prepend,
    )
