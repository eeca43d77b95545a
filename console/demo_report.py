"""What the demo found: every figure from evidence, the spool on one side, the witness on the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

WAITING = ("accepted", "held", "due", "dispatched", "sending")


class Summary(msgspec.Struct):
    """``summary.json`` of a demo; counts are jobs, times real seconds."""

    accepted: int
    sent: int
    bounced: int
    refused: int
    suppressed: int  # of the refused
    deferred: int
    expired: int
    uncertain: int
    waiting: int  # neither ended nor deferred when the demo stopped looking
    lost: int
    duplicates: int
    failing_provider: str
    shift_seconds: float | None
    sent_by_backup: int  # jobs of the failing provider that left by another way
    messages_per_second: float
    seconds: float
    by_bucket: dict[str, dict[str, int]]
    clock_rate: float


def summarise(
    *,
    answered: int,
    jobs: Iterable[tuple[str, str, str, str | None]],
    witness: Iterable[Mapping[str, Any]],
    began: float,
    fault_at: float | None,
    failing: str,
    failing_domains: tuple[str, ...],
    clock_rate: float,
) -> Summary:
    """Put both sides together.

    ``answered``: jobs a door said it accepted. ``jobs``: (id, bucket, state, reason) of every job in
    the spool. ``witness``: what the providers recorded. *Lost* is what a door accepted and the spool
    does not know, and what the spool calls sent and no provider has; *duplicates* is what a provider
    has more than once. The shift is the time from the fault to the first mail of that provider's
    domains that arrived somewhere else.
    """
    states: Counter[str] = Counter()
    by_bucket: dict[str, Counter[str]] = {}
    sent_ids: set[str] = set()
    suppressed = total = 0
    for job_id, bucket, state, reason in jobs:
        total += 1
        states[state] += 1
        by_bucket.setdefault(bucket, Counter())[state] += 1
        if state == "sent":
            sent_ids.add(job_id)
        if state == "refused" and (reason or "").startswith("suppressed"):
            suppressed += 1
    seen: Counter[str] = Counter()
    first_elsewhere: float | None = None
    elsewhere = 0
    last = began
    for record in witness:
        seen[str(record["ref"])] += 1
        last = max(last, record["at"])
        domain = str(record["recipient"]).rpartition("@")[2].lower()
        if (
            fault_at is not None
            and domain in failing_domains
            and record["provider"] != failing
            and record["at"] >= fault_at
        ):
            elsewhere += 1
            if first_elsewhere is None or record["at"] < first_elsewhere:
                first_elsewhere = record["at"]
    seconds = max(last - began, 0.001)
    return Summary(
        accepted=total,
        sent=states["sent"],
        bounced=states["bounced"],
        refused=states["refused"],
        suppressed=suppressed,
        deferred=states["deferred"],
        expired=states["expired"],
        uncertain=states["uncertain"],
        waiting=sum(states[state] for state in WAITING),
        lost=max(0, answered - total) + len(sent_ids - seen.keys()) + states["dead_letter"],
        duplicates=sum(count - 1 for count in seen.values()),
        failing_provider=failing,
        shift_seconds=(
            round(first_elsewhere - fault_at, 2)
            if first_elsewhere is not None and fault_at is not None
            else None
        ),
        sent_by_backup=elsewhere,
        messages_per_second=round(states["sent"] / seconds, 1),
        seconds=round(seconds, 1),
        by_bucket={bucket: dict(counts) for bucket, counts in sorted(by_bucket.items())},
        clock_rate=clock_rate,
    )


def readable(summary: Summary) -> str:
    """The summary as a person reads it."""
    shift = (
        f"{summary.shift_seconds:.1f} s after the fault the first of its mail left by the backup; "
        f"{summary.sent_by_backup} jobs in all did"
        if summary.shift_seconds is not None
        else "no mail of it had to leave by the backup"
    )
    rows = [
        ("accepted", summary.accepted, "jobs committed to the spool"),
        ("sent", summary.sent, "a provider answered 250 to the final dot"),
        (
            "bounced",
            summary.bounced,
            "finally refused (unknown users); their addresses are suppressed",
        ),
        ("refused", summary.refused, f"by us before any attempt; {summary.suppressed} suppressed"),
        ("deferred", summary.deferred, "the remote said later; will be tried again"),
        ("expired", summary.expired, "retries exhausted (full mailboxes)"),
        ("uncertain", summary.uncertain, "connection lost after the final dot"),
        ("waiting", summary.waiting, "not ended when the demo stopped looking"),
        ("lost", summary.lost, "accepted, and neither ended nor waiting nor with a provider"),
        ("duplicates", summary.duplicates, "received twice by a provider"),
    ]
    lines = [f"  {name:<11}{count:>7}   {text}" for name, count, text in rows]
    lines += [
        "",
        f"  {summary.failing_provider} failed in the middle: {shift}.",
        f"  {summary.messages_per_second:.0f} messages a second over {summary.seconds:.0f} s "
        f"(limits, greylisting and the outage included; policy time ran {summary.clock_rate:g}x).",
    ]
    for bucket, counts in summary.by_bucket.items():
        said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        lines.append(f"  {bucket:<14} {said}")
    return "\n".join(lines)
