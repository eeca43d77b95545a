"""Rows of the tables to records of the contracts and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from mailweir.contracts.events import Attempt, Suppress
from mailweir.contracts.job import Bucket, Job, JobMeta
from mailweir.contracts.route import Orders

_BUCKETS = {bucket.value: bucket for bucket in Bucket}
_encode = msgspec.json.Encoder().encode
_decode_meta = msgspec.json.Decoder(JobMeta).decode
_decode_variables = msgspec.json.Decoder(dict[str, Any]).decode
_decode_orders = msgspec.json.Decoder(Orders).decode


def json_of(value: object) -> str:
    """The JSON text of a record."""
    return _encode(value).decode()


def jobs_of(rows: Iterable[tuple[Any, ...]]) -> list[Job]:
    """Rows of ``statements.JOB_COLUMNS`` (more columns may follow) as jobs.

    Jobs of one message share their meta's text, so it is decoded once per call."""
    metas: dict[str, JobMeta] = {}
    jobs = []
    for r in rows:
        text = r[14]
        meta = metas.get(text)
        if meta is None:
            meta = metas[text] = _decode_meta(text)
        variables = None if r[15] is None else _decode_variables(r[15])
        jobs.append(
            Job(
                r[0],
                r[1],
                r[2],
                _BUCKETS[r[3]],
                r[4],
                r[5],
                r[6],
                r[7],
                r[8],
                r[9],
                r[10],
                r[11],
                r[12],
                r[13],
                meta,
                variables,
                r[16],
                r[17],
                r[18],
                r[19],
                r[20],
            )
        )
    return jobs


def orders_of(text: str | None, known: dict[str, Orders]) -> Orders:
    """Orders from their column; ``known`` remembers texts already decoded in this call."""
    if text is None:
        return Orders()
    orders = known.get(text)
    if orders is None:
        orders = known[text] = _decode_orders(text)
    return orders


def attempt_row(a: Attempt) -> tuple[Any, ...]:
    """The values of ``statements.ATTEMPTS_ADD``."""
    suppress = None
    if a.suppress is not None:
        suppress = f"{a.suppress.scope}:{'' if a.suppress.days is None else a.suppress.days}"
    return (
        a.id,
        a.job_id,
        a.number,
        a.at,
        a.source,
        a.pool,
        a.provider,
        a.bucket,
        a.tenant,
        a.outcome,
        a.host,
        a.stage,
        a.code,
        a.enhanced,
        a.reply,
        a.category,
        a.blame,
        suppress,
        a.seconds,
        a.layer,
        a.conversation,
    )


def attempt_of(r: tuple[Any, ...]) -> Attempt:
    """An attempt from its row."""
    suppress = None
    if r[17] is not None:
        scope, _, days = r[17].partition(":")
        suppress = Suppress(scope, int(days) if days else None)
    return Attempt(
        id=r[0],
        job_id=r[1],
        number=r[2],
        at=r[3],
        source=r[4],
        pool=r[5],
        provider=r[6],
        bucket=r[7],
        tenant=r[8],
        outcome=r[9],
        host=r[10],
        stage=r[11],
        code=r[12],
        enhanced=r[13],
        reply=r[14],
        category=r[15],
        blame=r[16],
        suppress=suppress,
        seconds=r[18],
        layer=r[19],
        conversation=r[20],
    )
