"""The policy of a fresh installation: one source or two per kind of mail, kept apart."""

from __future__ import annotations

from collections.abc import Mapping

from mailweir.contracts.job import Bucket
from mailweir.contracts.policy import (
    Action,
    BucketPolicy,
    Match,
    Member,
    Policy,
    Pool,
    Provider,
    Retry,
    Rule,
    Share,
    Source,
)

TRANSACTIONAL_AGE = 24 * 3600.0  # S39


def default_buckets() -> dict[str, BucketPolicy]:
    """The three buckets with the defaults of S21, S39 and N41."""
    return {
        "transactional": BucketPolicy(
            retry=Retry(max_age=TRANSACTIONAL_AGE, uncertain="resend"), priority=5
        ),
        "marketing": BucketPolicy(),
        "bulk": BucketPolicy(priority=8),
    }


def default_policy(
    providers: Mapping[str, Provider] | None = None,
    *,
    addresses: tuple[str, ...] = (),
    ehlo: str | None = None,
) -> Policy:
    """What ``mailweir up`` runs with before anybody writes a policy.

    Transactional mail has the source ``tx-1``; marketing and bulk share ``news-1`` and ``news-2``.
    ``addresses``: local addresses for the three sources in that order; without, the system chooses.
    """
    names = ("tx-1", "news-1", "news-2")
    sources = {
        name: Source(
            name=name,
            ip=addresses[i] if i < len(addresses) else None,
            ehlo=ehlo,
            buckets=("transactional",) if name == "tx-1" else ("marketing", "bulk"),
        )
        for i, name in enumerate(names)
    }
    news = (Member("news-1"), Member("news-2"))
    pools = {
        "transactional": Pool("transactional", (Member("tx-1"),)),
        "marketing": Pool("marketing", news),
        "bulk": Pool("bulk", news),
    }
    rules = tuple(
        Rule(
            number=(i + 1) * 10,
            name=f"{bucket.value}",
            match=Match(bucket=(bucket.value,)) if bucket is not Bucket.BULK else Match(),
            action=Action(pools=(Share(bucket.value, 100),)),
        )
        for i, bucket in enumerate(Bucket)
    )
    return Policy(
        sources=sources,
        pools=pools,
        rules=rules,
        buckets=default_buckets(),
        providers=dict(providers or {}),
        header_routing=("*",),  # the doors' scope ``route`` decides who may
    )
