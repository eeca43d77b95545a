"""Every SQL statement of the spool, named; SQLite and PostgreSQL side by side where they differ.

A statement is the pair (SQLite, PostgreSQL). ``_both`` derives the pair from one text: ``?`` becomes
``%s``, ``{ids}`` is a list of ids (JSON text on SQLite, an array on PostgreSQL), ``{lock}`` is FOR
UPDATE in id order, so that two transactions never wait for each other's rows in a circle. ``%b``
sends an array in binary: a third of the CPU of its text form. ``{by_id}``, behind a table's name, is for
rows that are told by their id: by statistics of a quiet hour, or of empty tables, SQLite rather reads a whole
partial index, once small, than look the rows up. NOT INDEXED leaves it the ids only
(https://www.sqlite.org/lang_indexedby.html). PostgreSQL does the same until its autovacuum has looked again;
there a further condition that IS TRUE fits no partial index.

Many rows at once are one statement: VALUES on SQLite, unnest on PostgreSQL. The driver of SQLite lets go of
the interpreter lock at every step of a statement, and a thread that holds the write lock of the file would
wait for it again at every row (measured beside a busy thread: 11 ms a row with executemany, 0.7 ms with
VALUES).
"""
# ruff: noqa: S608 - texts are put together from names of ours, never from values

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

Statement = tuple[str, str]


class Many(NamedTuple):
    """A statement over many rows."""

    lite: Callable[[int], str]  # its text for so many rows
    post: str


_BY_ID = " NOT INDEXED"


def _both(text: str) -> Statement:
    lite = text.replace("{ids}", "IN (SELECT value FROM json_each(?))").replace("{lock}", "")
    post = text.replace("{ids}", "= ANY(?::bigint[])").replace("{lock}", "ORDER BY id FOR UPDATE")
    lite, post = lite.replace("{by_id}", _BY_ID), post.replace("{by_id}", "")
    return lite, post.replace("?", "%s")


def _insert(
    table: str,
    columns: dict[str, str],
    extra: str = "",
    tail: str = "",
    tail_postgresql: str = "",
) -> Many:
    """Insert many rows; ``columns`` maps names to PostgreSQL types, ``extra`` is ``name=literal``."""
    fixed = dict(pair.split("=") for pair in extra.split()) if extra else {}
    names = ", ".join([*columns, *fixed])
    marks = ", ".join(["?"] * len(columns) + list(fixed.values()))
    arrays = ", ".join(f"%b::{kind}[]" for kind in columns.values())
    source = f"SELECT {', '.join(['u.*', *fixed.values()])} FROM unnest({arrays}) AS u"
    into = f"INSERT INTO {table} ({names})"

    @cache
    def lite(count: int) -> str:
        return f"{into} VALUES {', '.join([f'({marks})'] * count)} {tail}"

    return Many(lite, f"{into} {source} {tail}{tail_postgresql}")


def _update(table: str, sets: str, columns: dict[str, str], where: str = "") -> Many:
    """Update many rows by id; ``sets`` and ``where`` (a further condition) name given values ``:name``, of
    ``columns``, and the row's own old values ``~name``."""
    sets, where = sets.replace("~", "j."), where.replace("~", "j.")
    rest = f" SET {sets} FROM %s WHERE j.id = :id"
    lite = f"UPDATE {table} AS j{_BY_ID}{rest}" + (f" AND {where}" if where else "")
    post = f"UPDATE {table} AS j{rest}" + (f" AND ({where}) IS TRUE" if where else "")
    names = [*columns]
    for name in sorted(names, key=len, reverse=True):
        lite = lite.replace(f":{name}", f"u.column{names.index(name) + 1}")
        post = post.replace(f":{name}", f"u.{name}")
    arrays = ", ".join(f"%b::{kind}[]" for kind in columns.values())
    marks = f"({', '.join('?' * len(names))})"

    @cache
    def lite_of(count: int) -> str:
        return lite % f"(VALUES {', '.join([marks] * count)}) AS u"

    return Many(lite_of, post % f"unnest({arrays}) AS u({', '.join(names)})")


# --- ids ----------------------------------------------------------------------------------------
NODE_NEXT = _both(
    "INSERT INTO positions (listener, position, updated_at) VALUES ('ids', '1', ?) "
    "ON CONFLICT (listener) DO UPDATE SET updated_at = excluded.updated_at, "
    "position = CAST(CAST(positions.position AS bigint) + 1 AS text) RETURNING position"
)

# --- doors --------------------------------------------------------------------------------------
MESSAGES_KNOWN = _both("SELECT id FROM messages WHERE id {ids}")
KEYS_KNOWN: Statement = (
    "SELECT m.id, m.tenant, m.idempotency_key, m.request_hash, m.answer, m.accepted_at "
    "FROM json_each(?) AS k CROSS JOIN messages AS m "
    "ON m.tenant = json_extract(k.value, '$[0]') "
    "AND m.idempotency_key = json_extract(k.value, '$[1]')",
    "SELECT m.id, m.tenant, m.idempotency_key, m.request_hash, m.answer, m.accepted_at "
    "FROM unnest(%s::text[], %s::text[]) AS k(tenant, key) JOIN messages AS m "
    "ON m.tenant = k.tenant AND m.idempotency_key = k.key",
)
KEYS_RELEASE = _both("UPDATE messages SET idempotency_key = NULL WHERE id {ids}")
MESSAGES_ADD = _insert(
    "messages",
    {
        "id": "bigint",
        "tenant": "text",
        "idempotency_key": "text",
        "request_hash": "bytea",
        "answer": "text",
        "accepted_at": "float8",
    },
    # PostgreSQL waits here for a concurrent call with the same key and then returns one row less;
    # SQLite has one writer, which has just looked
    tail_postgresql="ON CONFLICT DO NOTHING RETURNING id",
)
CONTENTS_ADD = _insert(
    "contents",
    {
        "id": "bigint",
        "kind": "text",
        "body": "bytea",
        "sha256": "bytea",
        "created_at": "float8",
        "body_file": "bigint",
        "body_at": "bigint",
        "body_size": "bigint",
    },
    tail="ON CONFLICT (id) DO NOTHING",  # several calls may share one content
)
# PostgreSQL: a plan for these very values copies all of them several times, 25 of 65 us a body of 10 KiB.
# For the rest of the transaction; not before a statement whose plan depends on what the tables hold.
KEEP_PLANS = "SET LOCAL plan_cache_mode = force_generic_plan"
JOBS_ADD = _insert(
    "jobs",
    {
        "id": "bigint",
        "message_id": "bigint",
        "tenant": "text",
        "bucket": "text",
        "priority": "int",
        "recipient": "text",
        "recipient_key": "text",
        "mail_from": "text",
        "lane": "text",
        "flow": "text",
        "content_id": "bigint",
        "size": "int",
        "variables": "text",
        "meta": "text",
        "campaign": "text",
        "accepted_at": "float8",
        "due_at": "float8",
        "expires_at": "float8",
    },
    extra="state='accepted' attempts=0 crashes=0 marks=''",
)

# --- reading jobs -------------------------------------------------------------------------------
JOB_COLUMNS = (
    "id, message_id, tenant, bucket, priority, recipient, mail_from, lane, content_id, state, "
    "accepted_at, due_at, expires_at, attempts, meta, variables, reason, stay_with, "
    "first_attempt_at, crashes, size"
)
# A job is sending while its chunk is taken. That is said once, by the chunk's row: another write of each
# job's row is what taking a chunk would cost most.
_STATE = (
    "CASE WHEN state = 'dispatched' AND EXISTS (SELECT 1 FROM chunks AS c "
    "WHERE c.id = jobs.chunk_id AND c.taken_real IS NOT NULL) THEN 'sending' ELSE state END"
)
_SHOWN_COLUMNS = JOB_COLUMNS.replace(" state,", f" {_STATE} AS state,")
_TAKEN_COLUMNS = JOB_COLUMNS.replace(" state,", " 'sending' AS state,")
# the router decides without the variables of a skeleton: they may be large
_CLAIM_COLUMNS = JOB_COLUMNS.replace("variables", "NULL")

# --- router -------------------------------------------------------------------------------------
# A loose index scan: one probe per flow, however many jobs wait in it.
FLOWS: Statement = (
    "WITH RECURSIVE f(flow) AS ("
    "SELECT min(flow) FROM jobs WHERE bucket = ?1 AND due_at IS NOT NULL "
    "UNION ALL SELECT (SELECT min(j.flow) FROM jobs AS j WHERE j.bucket = ?2 "
    "AND j.due_at IS NOT NULL AND j.flow > f.flow) FROM f WHERE f.flow IS NOT NULL) "
    "SELECT f.flow, (SELECT min(j.due_at) FROM jobs AS j WHERE j.bucket = ?2 AND j.flow = f.flow "
    "AND j.due_at IS NOT NULL) FROM f WHERE f.flow IS NOT NULL",
    # by order and LIMIT, not min(): that has one plan only, whatever statistics say, and is planned faster
    "WITH RECURSIVE f(flow, due_at) AS ("
    "(SELECT flow, due_at FROM jobs WHERE bucket = %s AND due_at IS NOT NULL "
    "ORDER BY flow, due_at LIMIT 1) "
    "UNION ALL SELECT j.flow, j.due_at FROM f CROSS JOIN LATERAL ("
    "SELECT flow, due_at FROM jobs WHERE bucket = %s AND due_at IS NOT NULL "
    "AND flow > f.flow ORDER BY flow, due_at LIMIT 1) AS j) "
    "SELECT flow, due_at FROM f",
)
WAITS = _both("SELECT 1 FROM jobs WHERE bucket = ? AND due_at IS NOT NULL ORDER BY flow LIMIT 1")
CLAIM: Statement = (
    f"SELECT {_CLAIM_COLUMNS} FROM jobs "
    "WHERE bucket = ? AND flow = ? AND due_at <= ? ORDER BY due_at LIMIT ?",
    f"SELECT c.* FROM unnest(%s::text[], %s::text[], %s::int[]) AS p(bucket, flow, n) "
    f"CROSS JOIN LATERAL (SELECT {_CLAIM_COLUMNS} FROM jobs AS j WHERE j.bucket = p.bucket "
    "AND j.flow = p.flow AND j.due_at <= %s ORDER BY j.due_at LIMIT p.n "
    "FOR UPDATE SKIP LOCKED) AS c",
)
STILL_WAITING = _both(
    "SELECT id, state, due_at FROM jobs{by_id} WHERE id {ids} AND due_at IS NOT NULL"
)
CHUNKS_ADD = _insert(
    "chunks",
    {
        "id": "bigint",
        "bucket": "text",
        "queue": "text",
        "source": "text",
        "size": "int",
        "published_real": "float8",
        "lanes": "text",
    },
)
DISPATCH = _update(
    "jobs",
    "state = 'dispatched', due_at = NULL, reason = NULL, "
    "chunk_id = :chunk, pool = :pool, source = :source, orders = :orders",
    {
        "chunk": "bigint",
        "pool": "text",
        "source": "text",
        "orders": "text",
        "id": "bigint",
        "was": "float8",
    },
    "~due_at = :was",
)
MOVE = _update(
    "jobs",
    "state = :state, due_at = :due, reason = :reason, ended_at = :ended",
    {
        "state": "text",
        "due": "float8",
        "reason": "text",
        "ended": "float8",
        "id": "bigint",
        "was": "float8",
    },
    "~due_at = :was",
)
PRIORITY = _update(
    "jobs",
    "priority = :priority, flow = :flow",
    {"priority": "int", "flow": "text", "id": "bigint"},
)
DECISIONS_ADD = _insert(
    "decisions",
    {
        "id": "bigint",
        "job_id": "bigint",
        "at": "float8",
        "snapshot": "text",
        "policy_version": "int",
        "outcome": "text",
        "pool": "text",
        "source": "text",
        "queue": "text",
        "rule": "text",
        "reason": "text",
        "body": "text",
    },
)
IN_WINDOW = _both(
    "SELECT queue, bucket, size, coalesce(lanes, '{}') FROM chunks "
    "WHERE done_real IS NULL AND taken_real IS NULL"
)

# --- worker -------------------------------------------------------------------------------------
TAKE_CHUNKS = _both(
    "UPDATE chunks SET taken_real = ?, lease_real = ?, worker = ?, epoch = ? "
    "WHERE id {ids} AND taken_real IS NULL AND done_real IS NULL RETURNING id"
)
TAKE_EXPIRED = _both(
    "UPDATE jobs SET state = 'expired', reason = ?, ended_at = ?, chunk_id = NULL "
    "WHERE chunk_id {ids} AND state = 'dispatched' AND expires_at <= ?"
)
TAKEN = _both(
    f"SELECT {_TAKEN_COLUMNS}, pool, source, orders FROM jobs "
    "WHERE chunk_id = ? AND state = 'dispatched'"
)
CHUNKS_DONE = _both(
    "UPDATE chunks SET done_real = ? WHERE id {ids} AND done_real IS NULL "
    # a chunk that still holds a job stays open, so that its lease frees the job
    "AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.chunk_id = chunks.id)"
)
CONTENTS = _both(
    "SELECT id, kind, body, sha256, body_file, body_at, body_size FROM contents WHERE id {ids}"
)
RENEW = _both(
    "UPDATE chunks SET lease_real = ? WHERE id {ids} AND worker = ? AND done_real IS NULL "
    "RETURNING id"
)
SENDING = _both("SELECT id, chunk_id FROM jobs WHERE id {ids} AND state = 'dispatched' {lock}")
OUTCOME = _update(
    "jobs",
    # without an attempt nothing was learnt of where it must stay
    "state = :state, due_at = :due, reason = :reason, "
    "stay_with = CASE WHEN :spent = 0 THEN coalesce(:stay, ~stay_with) ELSE :stay END, "
    "attempts = ~attempts + :spent, first_attempt_at = coalesce(~first_attempt_at, :began), "
    "ended_at = :ended, chunk_id = NULL",
    {
        "state": "text",
        "due": "float8",
        "reason": "text",
        "stay": "text",
        "spent": "int",
        "began": "float8",
        "ended": "float8",
        "id": "bigint",
        "fence": "bigint",
    },
    "~chunk_id = :fence AND ~state = 'dispatched'",
)
_ATTEMPT = {
    "id": "bigint",
    "job_id": "bigint",
    "number": "int",
    "at": "float8",
    "source": "text",
    "pool": "text",
    "provider": "text",
    "bucket": "text",
    "tenant": "text",
    "outcome": "text",
    "host": "text",
    "stage": "text",
    "code": "int",
    "enhanced": "text",
    "reply": "text",
    "category": "text",
    "blame": "text",
    "suppress": "text",
    "seconds": "float8",
    "layer": "text",
    "conversation": "text",
}
ATTEMPTS_ADD = _insert("attempts", _ATTEMPT)

# --- reconciler ---------------------------------------------------------------------------------
LEASES_EXPIRED = _both(
    "SELECT id, epoch FROM chunks WHERE done_real IS NULL AND lease_real < ? "
    "ORDER BY lease_real LIMIT ?"
)
JOBS_SENDING_IN = _both(
    "SELECT chunk_id, id FROM jobs WHERE chunk_id {ids} AND state = 'dispatched' ORDER BY id"
)
FENCE_OFF = _both(  # without its worker's name the lease cannot be renewed any more
    "UPDATE chunks SET worker = NULL WHERE id = ? AND done_real IS NULL AND lease_real < ?"
)
CRASHED_JOBS = _both(
    "SELECT id, crashes, source, attempts, pool, orders, bucket, tenant FROM jobs "
    "WHERE chunk_id = ? AND state = 'dispatched' {lock}"
)
UNCERTAIN_BEFORE = _both(
    "SELECT DISTINCT job_id FROM attempts WHERE job_id {ids} AND outcome = 'uncertain'"
)
FREE = _update(
    "jobs",
    "state = :state, due_at = :due, reason = :reason, stay_with = coalesce(:stay, ~stay_with), "
    "attempts = ~attempts + :spent, first_attempt_at = coalesce(~first_attempt_at, :began), "
    "ended_at = :ended, crashes = ~crashes + 1, chunk_id = NULL",
    {
        "state": "text",
        "due": "float8",
        "reason": "text",
        "stay": "text",
        "spent": "int",
        "began": "float8",
        "ended": "float8",
        "id": "bigint",
    },
)
QUEUES_UNTAKEN = _both(
    "SELECT DISTINCT queue FROM chunks WHERE done_real IS NULL AND taken_real IS NULL"
)
LATEST_TAKEN = _both(
    "SELECT max(published_real) FROM (SELECT published_real FROM chunks "
    "WHERE queue = ? AND taken_real < ? ORDER BY taken_real DESC LIMIT 100) AS t"
)
CHUNKS_UNTAKEN = _both(
    "SELECT id FROM chunks WHERE queue = ? AND done_real IS NULL AND taken_real IS NULL "
    "AND published_real < ? ORDER BY id"
)
CHUNKS_GIVE_UP = _both(
    "UPDATE chunks SET done_real = ? WHERE id {ids} AND taken_real IS NULL "
    "AND done_real IS NULL RETURNING id"
)
JOBS_DUE_AGAIN = _both(
    "UPDATE jobs SET state = 'due', due_at = ?, chunk_id = NULL, reason = ? "
    "WHERE chunk_id {ids} AND state = 'dispatched'"
)

# --- operator, feedback -------------------------------------------------------------------------
_WAITING = "'accepted', 'held', 'due', 'deferred', 'uncertain'"
_RESIDUE = (
    "(CAST(? AS bigint) IS NULL OR message_id = ?) "
    "AND (CAST(? AS text) IS NULL OR campaign = ?) "
    "AND (CAST(? AS text) IS NULL OR tenant = ?)"
)
CANCELLABLE_BY: dict[str, Statement] = {
    column: _both(
        f"SELECT id FROM jobs WHERE {column} = ? "
        f"AND {_STATE} IN ({_WAITING}, 'dispatched') AND {_RESIDUE} ORDER BY id"
    )
    for column in ("id", "message_id", "campaign", "tenant")
}
# locked, so that nobody takes one before its jobs are cancelled
CHUNKS_UNTAKEN_OF = _both(
    "SELECT id FROM chunks WHERE id IN (SELECT chunk_id FROM jobs WHERE id {ids}) "
    "AND taken_real IS NULL {lock}"
)
CANCEL = _both(
    "UPDATE jobs SET state = 'cancelled', due_at = NULL, chunk_id = NULL, ended_at = ?, "
    f"reason = ? WHERE id {{ids}} AND (state IN ({_WAITING}) "
    "OR state = 'dispatched' AND chunk_id {ids})"
)
# An operator buries a dead letter or tries it again; a report resolves an uncertain job or
# overrules the 250 of a sent one.
RESOLVE = _both(
    "UPDATE jobs SET state = ?, due_at = ?, ended_at = ?, reason = ? WHERE id = ? AND state = ?"
)
MARKS_OF = _both("SELECT marks FROM jobs WHERE id = ? {lock}")
MARK = _both("UPDATE jobs SET marks = ? WHERE id = ?")

# --- reading ------------------------------------------------------------------------------------
JOB = _both(f"SELECT {_SHOWN_COLUMNS} FROM jobs WHERE id = ?")
JOBS_OF = _both(f"SELECT {_SHOWN_COLUMNS} FROM jobs WHERE message_id = ? ORDER BY id")
WHERE_IS = _both("SELECT pool, source, chunk_id, marks, ended_at FROM jobs WHERE id = ?")
# one query for each of the three indexes that every job is in exactly one of
COUNTS = _both(
    "SELECT bucket, state, count(*) FROM jobs WHERE due_at IS NOT NULL GROUP BY bucket, state "
    f"UNION ALL SELECT bucket, {_STATE}, count(*) FROM jobs WHERE chunk_id IS NOT NULL "
    "GROUP BY 1, 2 "
    "UNION ALL SELECT bucket, state, count(*) FROM jobs WHERE ended_at >= ? GROUP BY bucket, state"
)
BACKLOG = _both(
    "SELECT count(CASE WHEN due_at <= ? THEN 1 END), count(CASE WHEN due_at > ? THEN 1 END), "
    "min(CASE WHEN due_at <= ? THEN due_at END) FROM jobs "
    "WHERE bucket = ? AND due_at IS NOT NULL"
)
_SEARCH = f"""SELECT {_SHOWN_COLUMNS} FROM jobs WHERE %s
    AND (CAST(? AS text) IS NULL OR tenant = ?) AND (CAST(? AS text) IS NULL OR campaign = ?)
    AND (CAST(? AS text) IS NULL OR {_STATE} = ?) AND id < ? ORDER BY id DESC LIMIT ?"""
SEARCH_BY: dict[str, Statement] = {
    column: _both(_SEARCH % (f"{column} = ?")) for column in ("recipient_key", "campaign", "tenant")
}
SEARCH_ALL = _both(_SEARCH % "CAST(? AS text) IS NULL")
DECISIONS_OF = _both(
    "SELECT id, job_id, at, snapshot, policy_version, outcome, pool, source, queue, rule, reason, "
    "body FROM decisions WHERE job_id = ? ORDER BY at, id"
)
_ATTEMPTS = f"SELECT {', '.join(_ATTEMPT)} FROM attempts"
ATTEMPTS_OF = _both(f"{_ATTEMPTS} WHERE job_id = ? ORDER BY number, id")
ATTEMPTS_AFTER = _both(f"{_ATTEMPTS} WHERE id > ? ORDER BY id LIMIT ?")
ATTEMPTS_AT = _both(f"{_ATTEMPTS} WHERE at >= ? AND (at > ? OR id > ?) ORDER BY at, id LIMIT ?")
ATTEMPTS_BY_ID = _both(f"{_ATTEMPTS} WHERE id {{ids}} ORDER BY id")
FEEDBACK_OF = _both("SELECT body FROM feedback WHERE job_id = ? ORDER BY occurred_at, id")
_RECENT = (
    "SELECT j.recipient_key, j.id, a.at FROM attempts AS a {join} jobs AS j ON j.id = a.job_id "
    "WHERE a.at >= ? UNION ALL SELECT recipient_key, id, ? FROM jobs "
    "WHERE chunk_id IS NOT NULL AND state = 'dispatched'"
)
ATTEMPTS_BY_RECIPIENT: Statement = (
    _RECENT.replace("{join}", "CROSS JOIN"),  # SQLite: in this order
    _RECENT.replace("{join}", "JOIN").replace("?", "%s"),
)

# --- pruning ------------------------------------------------------------------------------------
JOBS_OUTLIVED = _both(
    "SELECT id, message_id FROM jobs WHERE ended_at < ? ORDER BY ended_at LIMIT ?"
)
DECISIONS_DROP = _both("DELETE FROM decisions WHERE job_id {ids}")
ATTEMPTS_DROP = _both("DELETE FROM attempts WHERE job_id {ids}")
FEEDBACK_DROP = _both("DELETE FROM feedback WHERE job_id {ids}")
JOBS_DROP = _both("DELETE FROM jobs{by_id} WHERE id {ids} AND ended_at < ?")
MESSAGES_DROP = _both(
    "DELETE FROM messages WHERE id {ids} AND accepted_at < ? "
    "AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.message_id = messages.id)"
)
CONTENTS_OUTLIVED = _both(
    "SELECT c.id FROM contents AS c WHERE c.created_at < ? AND NOT EXISTS ("
    "SELECT 1 FROM jobs AS j WHERE j.content_id = c.id "
    "AND (j.ended_at IS NULL OR j.ended_at >= ?)) ORDER BY c.created_at LIMIT ?"
)
CONTENTS_DROP = _both("DELETE FROM contents WHERE id {ids}")
BODIES_IN_FILES = _both("SELECT 1 FROM contents WHERE body_file IS NOT NULL LIMIT 1")
BODIES_NAMED = _both("SELECT 1 FROM contents WHERE body_file = ? LIMIT 1")
CHUNKS_OUTLIVED = _both("SELECT id FROM chunks WHERE done_real < ? LIMIT ?")
CHUNKS_DROP = _both("DELETE FROM chunks WHERE id {ids}")
