"""Small builders: jobs, snapshots and contexts for tests of decisions."""

from __future__ import annotations

from typing import Any

from mailweir.contracts.job import Bucket, Job, JobMeta
from mailweir.contracts.policy import Policy
from mailweir.contracts.snapshot import FastPath, FastState, PathState, Snapshot
from router.policy.compiled import CompiledPolicy
from router.policy.context import Context, RouterState

NOW = 1_790_000_000.0  # a Monday, 2026-09-21 14:13:20 UTC


def job(
    id: int = 1,
    bucket: str = "transactional",
    recipient: str = "ann@gmail.com",
    lane: str = "gmail",
    tenant: str = "acme",
    mail_from: str = "shop@example.com",
    state: str = "accepted",
    accepted_at: float = NOW - 1,
    **more: Any,
) -> Job:
    """A job as the router reads it; unknown keywords go to its meta."""
    fields = {k: more.pop(k) for k in list(more) if k in Job.__struct_fields__}
    return Job(
        id=id,
        message_id=1,
        tenant=tenant,
        bucket=Bucket(bucket),
        priority=5,
        recipient=recipient,
        mail_from=mail_from,
        lane=lane,
        content_id=1,
        state=state,
        accepted_at=accepted_at,
        due_at=NOW,
        expires_at=fields.pop("expires_at", None),
        attempts=fields.pop("attempts", 0),
        meta=JobMeta(**more),
        **fields,
    )


def snapshot(paths: dict[str, PathState] | None = None, version: int = 7, **more: Any) -> Snapshot:
    return Snapshot(version, NOW - 1, 1, paths or {}, **more)


def fast(paths: dict[str, FastPath] | None = None, version: int = 3) -> FastState:
    return FastState(version, paths or {})


def context(
    policy: Policy,
    paths: dict[str, PathState] | None = None,
    fast_paths: dict[str, FastPath] | None = None,
    now: float = NOW,
    paused: dict[str, float] | None = None,
    **more: Any,
) -> Context:
    return Context(
        policy=CompiledPolicy(policy),
        snapshot=snapshot(paths, paused=paused or {}),
        fast=fast(fast_paths),
        now=now,
        **more,
    )


FRESH = RouterState()
