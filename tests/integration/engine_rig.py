"""What engine tests share: a spool, a Redis, simulated providers, jobs accepted and settled by hand."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis
from sqlalchemy import text

from mailweir.contracts.ids import new_id, new_ids
from mailweir.contracts.job import (
    Bucket,
    Content,
    ContentKind,
    JobMeta,
    NewJob,
    NewMessage,
)
from mailweir.contracts.policy import BucketPolicy, Member, Policy, Pool, Provider, Source, Throttle
from mailweir.contracts.route import Chunk, Orders
from mailweir.plumbing import policies
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import migrate
from mailweir.plumbing.settings import Settings
from mailweir.spool.store import DecisionRow, Dispatch, Pick, Spool, open_spool
from workers.engine_build import Worker

FAST = Throttle(600_000, 60)  # buckets start empty: a tight one would hold the first jobs
PHASE = 60.0
"""Seconds an SMTP phase may take: a busy machine that stands still for a moment times out no mail."""
LONGEST = 60.0
"""Seconds any wait may take."""
BODY = b"From: a@news.example\r\nTo: you\r\nSubject: hello\r\n\r\nA body.\r\n"


def policy_for(*providers: str, rate: Throttle = FAST, **buckets: BucketPolicy) -> Policy:
    """Two sources in one pool, providers with room."""
    return Policy(
        sources={name: Source(name) for name in ("mx1", "mx2")},
        pools={"default": Pool("default", (Member("mx1"), Member("mx2")))},
        providers={
            name: Provider(name, connections=8, per_connection=1000, rate=rate, cold_rate=rate)
            for name in (*providers, "other")
        },
        buckets=dict(buckets),
    )


def settings_for(
    data: Path,
    redis_url: str,
    mx_map: dict[str, list[str]],
    *,
    phase: float = PHASE,
    **worker: float,
) -> Settings:
    """Settings of a private installation; ``phase`` seconds may each SMTP phase take."""
    phases = dict.fromkeys(
        ("connect", "banner", "helo", "mail", "rcpt", "data", "block", "dot"), phase
    )
    return Settings.model_validate(
        {
            "data": data,
            "redis": {"url": redis_url},
            "dns": {"mx_map": mx_map},
            "smtp": {"hostname": "mx1.news.example", **phases},
            "worker": worker,
        }
    )


async def until(
    what: Callable[[], object], *works: asyncio.Task[None], seen: Callable[[], object] = str
) -> None:
    """Wait for a signal; ``works`` must not end before it."""
    end = time.monotonic() + LONGEST
    while not what():
        assert not any(work.done() for work in works), f"it ended first: {seen()}"
        assert time.monotonic() < end, f"not within {LONGEST:g} s: {seen()}"
        await asyncio.sleep(0.01)


@dataclass
class Rig:
    """An installation without router and doors: the test plays both."""

    settings: Settings
    spool: Spool
    client: redis.Redis
    clock: Clock

    @classmethod
    def build(cls, settings: Settings, policy: Policy) -> Rig:
        spool = open_spool(settings)
        migrate(spool.database)
        assert settings.redis.url is not None
        client = redis.Redis.from_url(settings.redis.url.get_secret_value())
        clock = Clock(settings.clock.origin, settings.clock.rate)
        rig = cls(settings, spool, client, clock)
        rig.apply(policy)
        return rig

    def apply(self, policy: Policy) -> None:
        policies.apply(
            self.spool.database,
            policy,
            "",
            author="test",
            reason=None,
            now=self.clock.now(),
            redis=self.client,
        )

    def accept(
        self,
        recipients: Sequence[str],
        bucket: Bucket = Bucket.BULK,
        *,
        expires_in: float | None = None,
        meta: JobMeta | None = None,
        body: bytes = BODY,
    ) -> list[int]:
        """One message to many; the jobs' ids."""
        ids = new_ids(len(recipients))
        content = Content(new_id(), ContentKind.MIME, body, hashlib.sha256(body).digest())
        now = self.clock.now()
        message = NewMessage(
            new_id(),
            "acme",
            bucket,
            5,
            content,
            meta or JobMeta(),
            tuple(
                NewJob(i, r, "a@news.example", "~00") for i, r in zip(ids, recipients, strict=True)
            ),
            now,
            None if expires_in is None else now + expires_in,
        )
        self.spool.accept([message])
        return ids

    def settle(
        self,
        bucket: Bucket = Bucket.BULK,
        *,
        source: str = "mx1",
        size: int = 50,
        orders: Orders | None = None,
        routed_in: float = 0.0,
    ) -> list[Chunk]:
        """Claim every due job and hand it to a chunk, as a router would: now, or by its clock so many
        real seconds from now."""
        chunks: list[Chunk] = []
        while True:
            now = self.clock.now()
            picks = [Pick(flow, size) for flow in self.spool.flows(bucket, now)]
            with self.spool.claim(picks, now) as batch:
                if not batch.jobs:
                    return chunks
                dispatches, decisions = [], []
                for start in range(0, len(batch.jobs), size):
                    jobs = batch.jobs[start : start + size]
                    ids = tuple(job.id for job in jobs)
                    made = new_id(time.time() + routed_in)
                    chunk = Chunk(made, bucket, bucket.value, source, ids)
                    dispatches.append(
                        Dispatch(
                            chunk,
                            dict.fromkeys(ids, "default"),
                            dict.fromkeys(ids, orders or Orders()),
                        )
                    )
                    decisions += [
                        DecisionRow(
                            new_id(),
                            i,
                            now,
                            "0.0",
                            1,
                            "routed",
                            "default",
                            source,
                            bucket.value,
                            None,
                            None,
                            None,
                        )
                        for i in ids
                    ]
                chunks += batch.settle(dispatches, [], decisions)

    def states(self, ids: Sequence[int]) -> Counter[str]:
        return Counter(job.state for job in map(self.spool.job, ids) if job is not None)

    def attempts(self) -> list[dict[str, object]]:
        with self.spool.database.read() as conn:
            rows = conn.execute(text("SELECT * FROM attempts ORDER BY id")).mappings()
            return [dict(row) for row in rows]

    def chunks(self) -> list[dict[str, object]]:
        with self.spool.database.read() as conn:
            rows = conn.execute(text("SELECT * FROM chunks ORDER BY id")).mappings()
            return [dict(row) for row in rows]

    @contextlib.asynccontextmanager
    async def worker(self, concurrency: int = 8, name: str = "w@test") -> AsyncIterator[Worker]:
        worker = Worker(self.settings, name=name, queues=("bulk",), concurrency=concurrency)
        await worker.start()
        try:
            yield worker
        finally:
            worker.stop()
            await worker.close()
