"""Every table of Mailweir, on SQLite and PostgreSQL alike.

Times are policy seconds (double) unless the name ends in ``_real`` (real Unix seconds by the database's
clock: leases, publication of chunks). Ids are ours (mailweir.contracts.ids). One writer per fact: the
comment above each table names it.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeEngine

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_ID = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's rowid must be INTEGER


def json_text() -> TypeEngine[str]:
    """JSON kept as text: written and read by msgspec, never queried inside."""
    return Text()


# writer: doors, through accept
contents = Table(
    "contents",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("kind", String(8), nullable=False),
    Column("body", LargeBinary, nullable=False),  # PostgreSQL: STORAGE EXTERNAL (migration)
    Column("sha256", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
    # where the body is when it is in a file (mailweir.plumbing.bodies); then ``body`` is empty
    Column("body_file", BigInteger),
    Column("body_at", BigInteger),
    Column("body_size", BigInteger),
)
Index("contents_created", contents.c.created_at)
# a file may go when no row names it
Index(
    "contents_file",
    contents.c.body_file,
    sqlite_where=contents.c.body_file.is_not(None),
    postgresql_where=contents.c.body_file.is_not(None),
)

# writer: doors, through accept. One row per accepted call.
messages = Table(
    "messages",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("tenant", String(64), nullable=False),
    Column("idempotency_key", String(256)),
    Column("request_hash", LargeBinary, nullable=False),
    # the Accepted given, for the same key again; empty without a key
    Column("answer", json_text(), nullable=False),
    Column("accepted_at", Float, nullable=False),
    UniqueConstraint("tenant", "idempotency_key", name="uq_messages_key"),
)

# writers: accept inserts; router (waiting -> dispatched/held/ended), worker (sending -> outcome),
# each by compare-and-set on state and chunk_id, which is the fence.
jobs = Table(
    "jobs",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("message_id", _ID, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("bucket", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("recipient", String(320), nullable=False),
    Column("recipient_key", String(320), nullable=False),  # canonical, for search and cancel
    Column("mail_from", String(320), nullable=False),
    Column("lane", String(64), nullable=False),
    # "lane|tenant|priority": jobs of one flow are claimed in due order; flows share fairly
    Column("flow", String(160), nullable=False),
    Column("content_id", _ID, nullable=False),
    # bytes of the content; 0 for a job from before revision 0003
    Column("size", Integer, nullable=False, server_default="0"),
    Column("variables", json_text()),
    Column("meta", json_text(), nullable=False),
    Column("campaign", String(128)),
    Column("state", String(12), nullable=False),
    Column("accepted_at", Float, nullable=False),
    # not null exactly while the job waits and may be claimed at that time
    Column("due_at", Float),
    Column("expires_at", Float),
    Column("attempts", Integer, nullable=False, default=0),
    Column("crashes", Integer, nullable=False, default=0),
    Column("first_attempt_at", Float),
    Column("chunk_id", _ID),  # the fence: set by dispatch, checked by every worker write
    Column("pool", String(64)),
    Column("source", String(64)),
    Column("orders", json_text()),
    Column("reason", Text),
    Column("stay_with", String(64)),
    Column("marks", String(80), nullable=False, default=""),  # space-separated Mark values
    # not null exactly while nothing moves the job by itself: ended, dead letter, uncertain and left
    Column("ended_at", Float),
    postgresql_with={"fillfactor": 70},  # each job is updated about three times
)
# exactly one of due_at, chunk_id and ended_at is not null: every job is in one of three small indexes
Index(
    "jobs_waiting",
    jobs.c.bucket,
    jobs.c.flow,
    jobs.c.due_at,
    jobs.c.state,
    postgresql_where=jobs.c.due_at.is_not(None),
    sqlite_where=jobs.c.due_at.is_not(None),
)
Index(
    "jobs_chunk",
    jobs.c.chunk_id,
    postgresql_where=jobs.c.chunk_id.is_not(None),
    sqlite_where=jobs.c.chunk_id.is_not(None),
)
Index("jobs_message", jobs.c.message_id)
Index("jobs_content", jobs.c.content_id)  # content may go when its last job ended long ago
Index("jobs_recipient", jobs.c.recipient_key)
Index(
    "jobs_campaign",
    jobs.c.campaign,
    postgresql_where=jobs.c.campaign.is_not(None),
    sqlite_where=jobs.c.campaign.is_not(None),
)
Index(
    "jobs_ended",
    jobs.c.ended_at,
    jobs.c.bucket,
    jobs.c.state,
    postgresql_where=jobs.c.ended_at.is_not(None),
    sqlite_where=jobs.c.ended_at.is_not(None),
)

# writer: router (publish), worker (take, renew, done), reconciler (freed)
chunks = Table(
    "chunks",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("bucket", String(16), nullable=False),
    Column("queue", String(64), nullable=False),
    Column("source", String(64), nullable=False),
    Column("size", Integer, nullable=False),
    Column("published_real", Float, nullable=False),
    Column("taken_real", Float),
    Column("lease_real", Float),  # lease end
    Column("worker", String(128)),
    Column("epoch", String(32)),  # Redis' epoch when taken: another one later = count as in data
    Column("done_real", Float),
    # {lane: jobs}: what of the window each lane fills, without a look at the jobs
    Column("lanes", json_text()),
)
Index(
    "chunks_open",
    chunks.c.queue,
    chunks.c.id,
    postgresql_where=chunks.c.done_real.is_(None),
    sqlite_where=chunks.c.done_real.is_(None),
)
Index("chunks_done", chunks.c.done_real)
Index("chunks_taken", chunks.c.queue, chunks.c.taken_real)

# writer: router, in the transaction that moved the job
decisions = Table(
    "decisions",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("job_id", _ID, nullable=False),
    Column("at", Float, nullable=False),
    Column("snapshot", String(32), nullable=False),  # "version.n"
    Column("policy_version", Integer, nullable=False),
    Column("outcome", String(8), nullable=False),  # routed | held | refused | expired
    Column("pool", String(64)),
    Column("source", String(64)),
    Column("queue", String(64)),
    Column("rule", String(128)),
    Column("reason", Text),
    Column("body", json_text()),  # losing candidates grouped by reason, limits, precedence
)
Index("decisions_job", decisions.c.job_id)

# writer: worker, in the transaction of the outcome
attempts = Table(
    "attempts",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("job_id", _ID, nullable=False),
    Column("number", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("source", String(64), nullable=False),
    Column("pool", String(64), nullable=False),
    Column("provider", String(64), nullable=False),
    Column("bucket", String(16), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("outcome", String(12), nullable=False),
    Column("host", String(255), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("code", Integer),
    Column("enhanced", String(16)),
    Column("reply", Text, nullable=False),
    Column("category", String(32)),
    Column("blame", String(16)),
    Column("suppress", String(32)),  # "recipient:" or "recipient:180" (days): asked of the list
    Column("seconds", Float, nullable=False),
    Column("layer", String(16)),
    Column("conversation", json_text()),
)
Index("attempts_job", attempts.c.job_id)
Index("attempts_at", attempts.c.at)

# writer: reputation/intake, answered 2xx after the commit
feedback = Table(
    "feedback",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("event_id", String(255), nullable=False, unique=True),
    Column("job_id", _ID),
    Column("type", String(16), nullable=False),
    Column("provider", String(32), nullable=False),
    Column("occurred_at", Float, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("recipient_key", String(320)),
    Column("tenant", String(64)),
    Column("category", String(32)),
    Column("body", json_text(), nullable=False),  # the normalised event
    Column("raw", LargeBinary),
)
Index("feedback_job", feedback.c.job_id)

# writer: suppression
suppressions = Table(
    "suppressions",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("scope", String(16), nullable=False),  # global | tenant | bucket
    Column("tenant", String(64), nullable=False, default=""),
    Column("bucket", String(16), nullable=False, default=""),
    Column(
        "key", String(320), nullable=False
    ),  # canonical address, "@domain", or "sender>recipient"
    Column("reason", String(32), nullable=False),
    Column("pending", Boolean, nullable=False, default=False),  # held back by the mass-bounce guard
    Column("source_event", String(64)),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    UniqueConstraint("key", "scope", "tenant", "bucket", name="uq_suppressions_key"),
)

# writer: console (operator). What was changed by hand, by whom, why.
audit = Table(
    "audit",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("author", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(320), nullable=False),
    Column("reason", Text),
    Column("body", json_text()),
)

# writer: console (policy apply | rollback)
policies = Table(
    "policies",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("yaml", Text, nullable=False),
    Column("compiled", json_text(), nullable=False),
    Column("author", String(128), nullable=False),
    Column("approver", String(128)),
    Column("reason", Text),
    Column("at", Float, nullable=False),
    Column("canary", Integer, nullable=False, default=100),  # percent of jobs it decides
    Column("mode", String(8), nullable=False, default="live"),  # live | shadow | retired
)

# writer: console. Pauses, drains, pins, with reason and end.
overrides = Table(
    "overrides",
    metadata,
    Column(
        "subject", String(128), primary_key=True
    ),  # "pool:x", "source:x", "bucket:x", "tenant:x"
    Column("action", String(16), nullable=False),  # pause | drain
    Column("until", Float),
    Column("author", String(128), nullable=False),
    Column("reason", Text),
    Column("at", Float, nullable=False),
)

# writer: reputation
snapshots = Table(
    "snapshots",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

# writer: reputation. The folded state, so that a restarted leader goes on where it stopped.
counters = Table(
    "counters",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("body", json_text(), nullable=False),
    Column("updated_at", Float, nullable=False),
)

# writer: each listener its own row, in the transaction of what it derived
positions = Table(
    "positions",
    metadata,
    Column("listener", String(64), primary_key=True),
    Column("position", String(64), nullable=False),
    Column("updated_at", Float, nullable=False),
)

# writer: console (keys create | revoke)
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("auth_hash", LargeBinary, nullable=False),  # sha256("auth:" + secret)
    Column("mac_key", LargeBinary, nullable=False),  # sha256("mac:" + secret): published jobs' HMAC
    Column("scopes", String(128), nullable=False),  # space-separated: send read admin webhook route
    Column("domains", Text, nullable=False, default="*"),  # space-separated sender domains
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
)

# writer: doors. Stored templates of a tenant (P6); every version is a row, the newest of a name counts.
templates = Table(
    "templates",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("tenant", String(64), nullable=False),
    Column("name", String(128)),
    Column("body", LargeBinary, nullable=False),  # compiled skeleton
    Column("sha256", LargeBinary, nullable=False),  # of the body: the same template is stored once
    Column("created_at", Float, nullable=False),
    UniqueConstraint("tenant", "sha256", name="uq_templates_body"),
)

# writer: ingress consumer. Published jobs nobody could verify or read.
dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("origin", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

# writer: journal. Hash chain over decisions and attempts (N24).
journal = Table(
    "journal",
    metadata,
    Column("seq", _ID, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("ref", _ID, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # of the record with recipients by salted hash
    Column("chain", LargeBinary, nullable=False),  # sha256(previous chain + digest)
    Column("body", json_text(), nullable=False),
)
