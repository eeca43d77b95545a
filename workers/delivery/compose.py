"""From job and content to the bytes of the wire: built once, sent as built.

Nothing is parsed and written again: header lines fixed at accept, then the MIME bytes as they came or
the skeleton with this recipient's values, then the signatures over exactly that, in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from mailweir.contracts.job import Content, ContentKind, Job
from mailweir.mail import skeleton
from workers.delivery.dkim import Signer, sign_all, split
from workers.delivery.types import Envelope

KEPT_SKELETONS = 256


@lru_cache(maxsize=KEPT_SKELETONS)
def _skeleton(body: bytes) -> skeleton.Skeleton:
    return skeleton.decode(body)


def compose(
    job: Job, content: Content, signers: Sequence[Signer] = (), *, mail_from: str | None = None
) -> Envelope:
    """The envelope of a job; ``mail_from`` replaces the job's (VERP).

    Same job, same bytes: ``t=`` of the signatures is the time of accept. Raises :class:`ValueError`
    for content no door of ours lets in (bare CR or LF, a missing variable).
    """
    if content.kind is ContentKind.SKELETON:
        body = _skeleton(content.body).merge(job.variables or {})
    else:
        body = content.body
    if job.meta.prepend:
        head = job.meta.prepend.encode()
        body = head + body if head.endswith(b"\r\n") else head + b"\r\n" + body
    if not body.endswith(b"\r\n"):
        body += b"\r\n"  # DATA would add it; added here it is signed
    utf8 = not body.isascii() and not split(body)[0].isascii()
    data = sign_all(body, signers, int(job.accepted_at))
    return Envelope(
        job.id, job.mail_from if mail_from is None else mail_from, job.recipient, data, utf8
    )
