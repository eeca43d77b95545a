"""Intake put together from settings: what the web process mounts and the bounce listener runs."""

from __future__ import annotations

from typing import Any

import redis
from starlette.routing import Route

from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database
from mailweir.plumbing.install import derive, master_key
from mailweir.plumbing.secrets import Secrets
from mailweir.plumbing.settings import Settings
from mailweir.spool.store import Spool
from reputation.intake import seeds
from reputation.intake.certificates import Certificates
from reputation.intake.confirmation import Confirmation
from reputation.intake.http import IntakeDeps, path_token, routes
from reputation.intake.listener import MailIntake, listener
from reputation.intake.providers import webhook
from reputation.intake.record import Recorder


def webhook_path(settings: Settings, provider: str, tenant: str) -> str:
    """The path a relay is to post a tenant's events to. Raises ``UnknownProvider``."""
    name = provider if provider == seeds.NAME else webhook(provider).name
    token = path_token(derive(master_key(settings), "webhook"), name, tenant)
    return f"/v1/feedback/{name}/{token}"


def webhook_routes(
    settings: Settings, clock: Clock, database: Database, spool: Spool, client: redis.Redis
) -> list[Route]:
    """The routes of ``POST /v1/feedback/...``."""
    places = settings.feedback.secrets
    secrets = Secrets(settings)

    def secret_of(provider: str, tenant: str) -> str:
        reference = places.get(f"{provider}/{tenant}") or places.get(provider)
        return secrets.get(reference) if reference else ""

    # an empty allow-list lets nobody in: no topic is called ""
    topics = frozenset(settings.feedback.sns_topics) or frozenset({""})
    deps = IntakeDeps(
        Recorder(database, spool, client, master_key(settings)),
        derive(master_key(settings), "webhook"),
        secret_of,
        Certificates(),
        client=client,
        clock=clock,
        topics=topics,
        confirm=Confirmation() if settings.feedback.sns_confirm else None,
    )
    door = seeds.SeedDeps(database, deps.key, secret_of, clock)
    return [*seeds.routes(door), *routes(deps)]


def bounce_listener(
    settings: Settings, clock: Clock, database: Database, spool: Spool, client: redis.Redis | None
) -> Any:
    """The SMTP or LMTP listener of the settings, not yet started (aiosmtpd's ``start``, ``stop``)."""
    mine = settings.feedback
    return listener(
        mail_intake(settings, clock, database, spool, client), mine.host, mine.port, lmtp=mine.lmtp
    )


def mail_intake(
    settings: Settings, clock: Clock, database: Database, spool: Spool, client: redis.Redis | None
) -> MailIntake:
    """Takes reports that come by mail; tokens are the workers' (derived with "verp")."""
    keys = [derive(master_key(settings), "verp")]
    return MailIntake(Recorder(database, spool, client, master_key(settings)), keys, clock)
