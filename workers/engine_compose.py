"""From a taken job to its envelope: sending domain, signers, return path (P42, S4)."""

from __future__ import annotations

from mailweir.contracts.job import Content
from mailweir.contracts.policy import Policy
from mailweir.mail import verp
from mailweir.plumbing.secrets import SecretUnavailable
from mailweir.spool.store import Work
from workers.delivery.compose import compose
from workers.delivery.dkim import BadKey, Keyring, Signer
from workers.delivery.types import Envelope


class NotReady(Exception):
    """The job must wait for something an operator mends; the message says what."""


class Composer:
    """Thread-safe enough for the engine's threads: a key parsed twice is the same key."""

    def __init__(self, keyring: Keyring, verp_key: bytes) -> None:
        self._keyring = keyring
        self._verp_key = verp_key

    def compose(self, work: Work, contents: dict[int, Content], policy: Policy) -> Envelope:
        """The envelope of a job. Raises :class:`NotReady`, :class:`ValueError` for unsendable bytes."""
        job = work.job
        domain = job.meta.sending_domain or job.mail_from.rpartition("@")[2]
        known = policy.domains.get(domain)
        signers: tuple[Signer, ...] = ()
        if known is not None and known.dkim:
            try:
                signers = self._keyring.for_domain(known)
            except (SecretUnavailable, BadKey) as error:
                raise NotReady(f"DKIM key of {domain}: {error}") from error
        if work.orders.sign and not signers:
            raise NotReady(
                f"rule {work.orders.rule!r} demands a signature, {domain} has no DKIM key"
            )
        mail_from = None
        if known is not None and known.bounce_domain and job.mail_from:
            # by the time of accept, so that every attempt names the same return path
            mail_from = verp.make(job.id, self._verp_key, known.bounce_domain, job.accepted_at)
        content = contents.get(work.content_id)
        if content is None:
            raise ValueError(f"content {work.content_id} of the job is gone")
        return compose(job, content, signers, mail_from=mail_from)
