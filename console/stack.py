"""What the embedded stack consists of, and the preparation it needs before its first process starts."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from console.process import Spec
from mailweir.mail.providers import default_providers
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database
from mailweir.plumbing.install import make_once, master_key
from mailweir.plumbing.settings import Settings, load

STATE_SERVER = "redis"


@dataclass(frozen=True)
class Prepared:
    """A data directory ready to start: settings with everything filled in, and the key that was made."""

    settings: Settings
    api_key: str
    env: Mapping[str, str]


def embedded_settings(
    data: Path,
    *,
    port: int | None = None,
    flower_port: int | None = None,
    smtp_port: int | None = None,
) -> Settings:
    """Settings of the embedded stack; ports given on the command line win."""
    settings = load(data)
    web, flower = settings.web, settings.flower
    if port is not None:
        web = web.model_copy(
            update={"port": port, "public_url": f"http://{settings.web.host}:{port}"}
        )
    if flower_port is not None:
        flower = flower.model_copy(update={"port": flower_port})
    submission = settings.submission
    if smtp_port is not None:
        submission = submission.model_copy(update={"port": smtp_port})
    if flower.password is None:
        password = make_once(data / "flower.password", secrets.token_urlsafe(18))
        flower = flower.model_copy(update={"password": SecretStr(password)})
    return settings.model_copy(update={"web": web, "flower": flower, "submission": submission})


def prepare(settings: Settings) -> Prepared:
    """Migrate the spool, put a policy in force, make the first API key. Idempotent."""
    from mailweir.plumbing import apikeys, policies
    from mailweir.plumbing.database import migrate, open_database

    data = settings.data
    master_key(settings)
    database = open_database(settings)
    try:
        migrate(database)
        try:
            policies.current(database)
        except policies.NoPolicy:
            _first_policy(settings, database)
        key_file = data / "api.key"
        if key_file.exists():
            api_key = key_file.read_text().strip()
        else:
            made = apikeys.create(
                database, tenant="default", scopes=("send", "read", "route", "admin")
            )
            api_key = make_once(key_file, made)
    finally:
        database.close()
    web, flower = settings.web, settings.flower
    assert flower.password is not None
    env = {
        "MAILWEIR_DATA": str(data),
        "MAILWEIR_WEB__PORT": str(web.port),
        "MAILWEIR_WEB__PUBLIC_URL": web.public_url,
        "MAILWEIR_SUBMISSION__PORT": str(settings.submission.port),
        "MAILWEIR_FLOWER__PORT": str(flower.port),
        "MAILWEIR_FLOWER__PASSWORD": flower.password.get_secret_value(),
    }
    return Prepared(settings, api_key, env)


def _first_policy(settings: Settings, database: Database) -> None:
    """Put the policy file of the settings in force, or the default policy."""
    from mailweir.plumbing import policies
    from router.policy.default import default_policy

    now = Clock(settings.clock.origin, settings.clock.rate).now()
    if settings.policy is None:
        policies.apply(
            database,
            default_policy(default_providers()),
            "",
            author="up",
            reason="default",
            now=now,
        )
        return
    text = settings.policy.read_text(encoding="utf-8")
    from router.policy.loader import load_checked

    loaded = load_checked(text, file=str(settings.policy))
    policies.apply(database, loaded.policy, text, author="up", reason="first start", now=now)


def mailweir(*arguments: str) -> Sequence[str]:
    """The command line of one of our own processes."""
    return (sys.executable, "-m", "console", *arguments)


def state_server(settings: Settings, env: Mapping[str, str]) -> Spec | None:
    """The private Valkey/Redis, unless the settings name one."""
    if settings.redis.url is not None:
        return None
    return Spec(STATE_SERVER, mailweir("run", "state"), env, beats=False, grace=15)


def processes(env: Mapping[str, str]) -> list[Spec]:
    """Everything but the state server."""
    bulk_queues = "marketing,marketing.throttled,bulk,bulk.throttled"
    return [
        Spec("web", mailweir("run", "web"), env, beats=True),
        Spec("smtp", mailweir("run", "smtp"), env),
        Spec("ingress", mailweir("run", "ingress"), env),
        Spec("router-transactional", mailweir("run", "router", "--buckets", "transactional"), env),
        Spec("router-bulk", mailweir("run", "router", "--buckets", "marketing,bulk"), env),
        Spec("worker-transactional", mailweir("run", "worker", "--queues", "transactional"), env),
        Spec("worker-bulk", mailweir("run", "worker", "--queues", bulk_queues), env),
        Spec("reputation", mailweir("run", "reputation"), env),
        Spec("flower", mailweir("flower"), env, beats=False, grace=5),
    ]
