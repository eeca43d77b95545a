"""Messages, and the way of a job step by step, for the spool's suite."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from mailweir.contracts.events import Attempt
from mailweir.contracts.ids import new_id, new_ids
from mailweir.contracts.job import (
    Accepted,
    Bucket,
    Content,
    ContentKind,
    JobMeta,
    NewJob,
    NewMessage,
)
from mailweir.contracts.lifecycle import State
from mailweir.contracts.route import Chunk, Orders
from mailweir.spool.store import (
    DecisionRow,
    Dispatch,
    Move,
    Outcome,
    Pick,
    Spool,
    Taking,
    Work,
)

ORDERS = Orders(rule="default", provider="gmail", tls="required")


def message(
    *recipients: str,
    key: str | None = None,
    body: bytes = b"Subject: x\r\n\r\nhello\r\n",
    tenant: str = "acme",
    bucket: Bucket = Bucket.BULK,
    send_at: float | None = None,
    expires_at: float | None = None,
    campaign: str | None = None,
    lane: str = "gmail",
    priority: int = 5,
    content: Content | None = None,
) -> NewMessage:
    """A message to these recipients, due at once."""
    sha = hashlib.sha256(body).digest()
    return NewMessage(
        id=new_id(),
        tenant=tenant,
        bucket=bucket,
        priority=priority,
        content=content or Content(new_id(), ContentKind.MIME, body, sha),
        meta=JobMeta(campaign=campaign, tags=("t1",), metadata={"order": "7"}),
        jobs=tuple(
            NewJob(i, r, "sender@acme.test", lane, {"name": "Zoë"})
            for i, r in zip(new_ids(len(recipients)), recipients, strict=True)
        ),
        send_at=time.time() - 1 if send_at is None else send_at,
        expires_at=expires_at,
        idempotency_key=key,
        request_hash=sha,
    )


def accept(spool: Spool, count: int = 1, **how: object) -> list[int]:
    """Accept one message to ``count`` recipients; the ids of its jobs."""
    m = message(*[f"user{i}@gmail.com" for i in range(count)], **how)  # type: ignore[arg-type]  # passed through
    (answer,) = spool.accept([m])
    assert isinstance(answer, Accepted)
    return [job.id for job in m.jobs]


def decision(job_id: int, outcome: str = "routed") -> DecisionRow:
    """What the router would note of a job."""
    return DecisionRow(
        new_id(), job_id, time.time(), "7.2", 3, outcome, "main", "ip1", "bulk", "default",
        None, '{"rejected":[]}',
    )  # fmt: skip


def dispatch(ids: Sequence[int], *, queue: str = "bulk", source: str = "ip1") -> Dispatch:
    """These jobs as one chunk."""
    chunk = Chunk(new_id(), Bucket.BULK, queue, source, tuple(ids))
    return Dispatch(chunk, dict.fromkeys(ids, "main"), dict.fromkeys(ids, ORDERS))


def route(
    spool: Spool,
    *,
    now: float | None = None,
    size: int = 50,
    limit: int = 1000,
    queue: str = "bulk",
) -> list[Chunk]:
    """Claim everything due in the bulk bucket and dispatch it in chunks of ``size``."""
    now = time.time() if now is None else now
    picks = [Pick(flow, limit) for flow in spool.flows(Bucket.BULK, now)]
    with spool.claim(picks, now) as batch:
        ids = [job.id for job in batch.jobs]
        groups = [ids[i : i + size] for i in range(0, len(ids), size)]
        return batch.settle(
            [dispatch(g, queue=queue) for g in groups], [], [decision(i) for i in ids]
        )


def settle_moves(spool: Spool, state: State, due_at: float | None) -> None:
    """Claim everything due and move it to ``state``."""
    now = time.time()
    picks = [Pick(flow, 1000) for flow in spool.flows(Bucket.BULK, now)]
    with spool.claim(picks, now) as batch:
        moves = [Move(job.id, state, due_at, "because") for job in batch.jobs]
        batch.settle([], moves, [decision(job.id, "held") for job in batch.jobs])


def take(spool: Spool, chunk: Chunk, *, lease: float = 30.0, worker: str = "w1") -> list[Work]:
    """Take a chunk."""
    taking = Taking([chunk.id], worker, lease, "epoch1")
    return spool.taken(chunk) if spool.turn(taking=taking).taken else []


def attempt(work: Work, outcome: str = "sent", *, at: float | None = None) -> Attempt:
    """The attempt of a taken job."""
    return Attempt(
        id=new_id(),
        job_id=work.job.id,
        number=work.job.attempts + 1,
        at=time.time() if at is None else at,
        source=work.source,
        pool=work.pool,
        provider="gmail",
        bucket=work.job.bucket,
        tenant=work.job.tenant,
        outcome=outcome,
        stage="dot",
        code=250,
        reply="250 ok",
        seconds=0.5,
    )


def outcome(
    work: Work, chunk: Chunk, state: State = State.SENT, due_at: float | None = None
) -> Outcome:
    """An outcome with an attempt."""
    return Outcome(work.job.id, chunk.id, state, due_at, "reason", None, attempt(work, state.value))


def send(spool: Spool, chunk: Chunk) -> None:
    """Take a chunk and end all its jobs as sent."""
    works = take(spool, chunk)
    assert spool.turn([outcome(w, chunk) for w in works], [chunk.id]).lost == set()


def state_of(spool: Spool, job_id: int) -> str:
    """The state of a job that exists."""
    job = spool.job(job_id)
    assert job is not None
    return job.state


def real_times(spool: Spool, sql: str) -> None:
    """Change real times in ``chunks`` by hand: as if the clock had moved."""
    with spool.database.write() as conn:
        conn.exec_driver_sql(sql)
