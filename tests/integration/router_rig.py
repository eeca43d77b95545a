"""What router tests share: a real spool, Redis and broker, and router loops as processes build them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import select

from console.assembly.router import router_loop
from mailweir.contracts.ids import new_id, new_ids
from mailweir.contracts.job import Bucket, Content, ContentKind, JobMeta, NewJob, NewMessage
from mailweir.mail.providers import lane_of
from mailweir.plumbing import keys, policies
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.settings import Settings
from mailweir.spool.schema import decisions
from mailweir.spool.store import Spool, open_spool
from router.loop import Loop
from router.policy.loader import load

BODY = b"From: a@news.example\r\nTo: you\r\nSubject: hello\r\n\r\nA body.\r\n"


@dataclass
class Rig:
    """An installation without doors and workers: the test plays both."""

    settings: Settings
    spool: Spool
    client: redis.Redis
    clock: Clock

    @classmethod
    def build(cls, data: Path, redis_url: str, policy: str, **sections: Any) -> Rig:
        """A new installation with this policy in force."""
        settings = Settings.model_validate({"data": data, "redis": {"url": redis_url}, **sections})
        client = redis.Redis.from_url(redis_url)
        client.set(keys.EPOCH, "e1")
        clock = Clock(settings.clock.origin, settings.clock.rate)
        rig = cls(settings, open_spool(settings), client, clock)
        rig.apply(policy)
        return rig

    def apply(self, text: str, **more: Any) -> int:
        """Put a policy in force; its version."""
        loaded = load(text.encode(), file="policy.yaml")
        assert loaded.ok, loaded.errors
        return policies.apply(
            self.spool.database,
            loaded.policy,
            text,
            author="test",
            reason=None,
            now=self.clock.now(),
            redis=self.client,
            **more,
        )

    def accept(
        self,
        recipients: Sequence[str],
        bucket: str = "bulk",
        *,
        tenant: str = "acme",
        priority: int = 5,
        meta: JobMeta | None = None,
    ) -> list[int]:
        """One message to many; the jobs' ids."""
        ids = new_ids(len(recipients))
        content = Content(new_id(), ContentKind.MIME, BODY, hashlib.sha256(BODY).digest())
        jobs = tuple(
            NewJob(i, r, "a@news.example", lane_of(r.rpartition("@")[2]))
            for i, r in zip(ids, recipients, strict=True)
        )
        now = self.clock.now()
        self.spool.accept(
            [
                NewMessage(
                    new_id(), tenant, Bucket(bucket), priority, content, meta or JobMeta(), jobs,
                    now, None,
                )
            ]
        )  # fmt: skip
        return ids

    @contextmanager
    def router(self, *buckets: Bucket) -> Iterator[Loop]:
        """A router as its process builds it."""
        with ExitStack() as stack:
            yield router_loop(self.settings, self.clock, buckets or tuple(Bucket), stack)

    def routed(self) -> int:
        """Jobs that have left the spool for a queue."""
        counts = self.spool.counts()
        return sum(states.get("dispatched", 0) for states in counts.values())

    def drain(self, loop: Loop, count: int, longest: float = 180.0) -> None:
        """Turn until ``count`` jobs are dispatched."""
        deadline = time.monotonic() + longest
        while self.routed() < count:
            loop.turn()
            assert time.monotonic() < deadline, self.spool.counts()

    def decisions(self) -> list[Any]:
        """Every decision, in order."""
        with self.spool.database.read() as conn:
            return list(conn.execute(select(decisions).order_by(decisions.c.id)).all())
