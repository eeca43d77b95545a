"""Puts the reception of a process together, from settings and what it is given."""

from __future__ import annotations

from collections.abc import Callable

from mailweir.plumbing.bell import Bell
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database
from mailweir.plumbing.install import master_key
from mailweir.plumbing.redis import connect
from mailweir.plumbing.settings import Settings
from mailweir.spool.store import Spool
from producer.accept import Acceptor, Reception
from producer.templates import Templates
from suppression.unsubscribe import PATH, make_token


def unsubscribe_links(public_url: str, secret: bytes) -> Callable[[int, str, str, str], str]:
    """Writes the one-click URL of a job: job id, tenant, bucket, recipient."""
    base = public_url.rstrip("/")

    def url(job_id: int, tenant: str, bucket: str, recipient: str) -> str:
        token = make_token(secret, job_id, tenant, bucket, recipient.lower())
        return base + PATH.replace("{token}", token)

    return url


def open_reception(
    settings: Settings, clock: Clock, database: Database, spool: Spool
) -> tuple[Acceptor, Reception]:
    """The group commit of this process and the reception over it. Close the acceptor at the end."""
    acceptor = Acceptor(spool, settings.accept, Bell(connect(settings)))
    links = unsubscribe_links(settings.web.public_url, master_key(settings))
    return acceptor, Reception(acceptor, Templates(database), settings, clock, links)
