"""From a taken job to its envelope: sending domain, signers, return path (P42, S4)."""

from __future__ import annotations

from mailweir.contracts.job import Content
from mailweir.contracts.policy import Policy, SendingDomain
from mailweir.mail import verp
from mailweir.plumbing.secrets import SecretUnavailable
from mailweir.spool.store import Work
from workers.delivery.compose import compose
from workers.delivery.dkim import BadKey, Keyring, Signer
from workers.delivery.types import Envelope


class NotReady(Exception):
    """The job must wait for something an operator mends; the message says what."""


class Composer:
    """Makes the envelopes of chunks; shared by the engine's threads."""

    def __init__(self, keyring: Keyring, verp_key: bytes) -> None:
        self._keyring = keyring
        self._verp_key = verp_key

    def chunk(self, contents: dict[int, Content | None], policy: Policy) -> Composing:
        """What composes the jobs of one chunk."""
        return Composing(self._keyring, self._verp_key, contents, policy)


class Composing:
    """One chunk's jobs, by one thread: each domain's keys are asked for once."""

    def __init__(
        self, keyring: Keyring, verp_key: bytes, contents: dict[int, Content | None], policy: Policy
    ) -> None:
        self._keyring = keyring
        self._verp_key = verp_key
        self._contents = contents
        self._policy = policy
        self._signers: dict[str, tuple[Signer, ...] | NotReady] = {}

    def envelope(self, work: Work) -> Envelope:
        """The envelope of a job. Raises :class:`NotReady`, :class:`ValueError` for unsendable bytes."""
        job = work.job
        domain = job.meta.sending_domain or job.mail_from.rpartition("@")[2]
        known = self._policy.domains.get(domain)
        signers = () if known is None else self._of(known)
        if work.orders.sign and not signers:
            raise NotReady(
                f"rule {work.orders.rule!r} demands a signature, {domain} has no DKIM key"
            )
        mail_from = None
        if known is not None and known.bounce_domain and job.mail_from:
            # by the time of accept, so that every attempt names the same return path
            mail_from = verp.make(job.id, self._verp_key, known.bounce_domain, job.accepted_at)
        if work.content_id not in self._contents:
            raise ValueError(f"content {work.content_id} of the job is gone")
        content = self._contents[work.content_id]
        if content is None:
            raise NotReady("its body is in a file that is not there: see database.bodies")
        return compose(job, content, signers, mail_from=mail_from)

    def _of(self, domain: SendingDomain) -> tuple[Signer, ...]:
        found = self._signers.get(domain.name)
        if found is None:
            try:
                found = self._keyring.for_domain(domain)
            except (SecretUnavailable, BadKey) as error:
                found = NotReady(f"DKIM key of {domain.name}: {error}")
            self._signers[domain.name] = found
        if isinstance(found, NotReady):
            raise found
        return found
