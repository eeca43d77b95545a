"""Which of the jobs routed to one queue and source travel together. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from mailweir.contracts.job import Job
from mailweir.contracts.lifecycle import State
from mailweir.contracts.route import SENT_BACK, Routed

Member = tuple[Job, Routed]


def came_back(job: Job) -> bool:
    """Whether a throttle sent the job back to wait, and its place has come."""
    return job.state == State.HELD and (job.reason or "").startswith(SENT_BACK)


def parts(members: list[Member], most: int, most_bytes: int) -> Iterable[list[Member]]:
    """Chunks of at most ``most`` jobs and ``most_bytes`` of mail, but of one job at least; the urgent first,
    jobs of one domain side by side so that they share connections. Sorts ``members``."""
    members.sort(
        key=lambda member: (
            member[1].orders.priority or member[0].priority,
            member[0].lane,
            member[0].domain,
        )
    )
    part: list[Member] = []
    weight = 0
    for member in members:
        weight += member[0].size
        if part and (len(part) == most or weight > most_bytes):
            yield part
            part, weight = [], member[0].size
        part.append(member)
    if part:
        yield part
