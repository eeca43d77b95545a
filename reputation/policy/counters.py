"""What is counted of a path: the last hour in slots of five minutes, and a memory that fades.

What an attempt counts as (S52): sent; *soft*, a deferral or block that blames us (source, sender or
content); *hard*, a permanent fault of the recipient; *remote*, the provider's own trouble. Greylisting,
full mailboxes and recipients' faults are no fault of the path: they are in no rate but the bounce rate.
The faded counts feed the score; a slot enters them when it closes.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from reputation.policy.statistics import cusum, cusum_steps

SLOT = 300.0  # policy seconds
SLOTS = 12  # an hour
HOUR = 3600.0
DAY = 86400.0
BLAMES_US = frozenset({"source", "sender", "content"})
EXEMPT = frozenset({"greylisted", "mailbox_full", "recipient_rate_limited", "recipient_refused"})
BLOCKS = frozenset({"reputation_block", "blocklisted"})

BOUNCE_STEPS = cusum_steps(0.01, 0.04)
SOFT_STEPS = cusum_steps(0.05, 0.20)
COMPLAINT_STEPS = cusum_steps(0.0005, 0.002)
CUSUM_SLOW = 5.0
CUSUM_STOP = 8.0
CUSUM_CAP = 10.0  # above it nothing more is learnt, and it must come down when all is well again
OLD_EVIDENCE = 200.0


class N(IntEnum):
    """Columns of a slot."""

    FIRST = 0  # first attempts that count for the delivery rate
    GOOD = 1  # of these, sent
    TRIES = 2  # attempts that count for the soft rate
    SOFT = 3
    HARD = 4
    SENT = 5
    DEFERRED = 6  # of TRIES, asked to come later
    COMPLAINTS = 7
    BLOCKS = 8  # replies that name our reputation or a blocklist


WIDTH = len(N)
HALF_LIFE = {  # policy seconds (deliverability 4.2)
    N.FIRST: DAY,
    N.GOOD: DAY,
    N.TRIES: DAY,
    N.SOFT: DAY,
    N.HARD: 3 * DAY,
    N.SENT: 7 * DAY,
    N.DEFERRED: DAY,
    N.COMPLAINTS: 7 * DAY,
    N.BLOCKS: DAY,
}
_RATES = [HALF_LIFE[n] for n in N]


class Counters(msgspec.Struct):
    """Counts of one path. Changed in place: hundreds of thousands of events a minute pass here."""

    slot: int = 0  # number of the newest slot: floor(time / SLOT)
    ring: list[list[int]] = msgspec.field(
        default_factory=lambda: [[0] * WIDTH for _ in range(SLOTS)]
    )
    memory: list[float] = msgspec.field(default_factory=lambda: [0.0] * WIDTH)
    bounce_base: float = 0.0  # attempts with the bounce rate's half-life
    cusum_bounce: float = 0.0
    cusum_soft: float = 0.0
    cusum_complaint: float = 0.0
    last: float = 0.0  # time of the newest attempt
    tries: int = 0  # of all time, with soft: differences of these are rates over any span
    soft: int = 0


def count_attempt(
    c: Counters, at: float, number: int, outcome: str, category: str | None, blame: str | None
) -> None:
    """Count one attempt that began at ``at``."""
    row = _row(c, at)
    if row is None:
        return
    if outcome == "sent":
        row[N.TRIES] += 1
        c.tries += 1
        row[N.SENT] += 1
        if number == 1:
            row[N.FIRST] += 1
            row[N.GOOD] += 1
        c.cusum_bounce = _alarm(c.cusum_bounce, False, BOUNCE_STEPS)
        c.cusum_soft = _alarm(c.cusum_soft, False, SOFT_STEPS)
        c.cusum_complaint = _alarm(c.cusum_complaint, False, COMPLAINT_STEPS)
        return
    if outcome not in ("deferred", "bounced") or category in EXEMPT:
        return
    if blame == "recipient":
        if outcome == "bounced":
            row[N.HARD] += 1
            c.cusum_bounce = _alarm(c.cusum_bounce, True, BOUNCE_STEPS)
        return
    row[N.TRIES] += 1
    c.tries += 1
    row[N.FIRST] += number == 1
    row[N.DEFERRED] += outcome == "deferred"
    if blame in BLAMES_US:
        row[N.SOFT] += 1
        c.soft += 1
        row[N.BLOCKS] += category in BLOCKS
        c.cusum_soft = _alarm(c.cusum_soft, True, SOFT_STEPS)


def take_back(c: Counters, at: float, number: int, outcome: str, blame: str | None) -> None:
    """Undo a failure counted as :func:`count_attempt` does: it was the provider's, not the path's. Old
    ones (an hour) stay."""
    slot = int(at // SLOT)
    if slot <= c.slot - SLOTS or slot > c.slot:
        return
    row, ours = c.ring[slot % SLOTS], blame in BLAMES_US
    for column, counted in (
        (N.TRIES, True),
        (N.FIRST, number == 1),
        (N.DEFERRED, outcome == "deferred"),
        (N.SOFT, ours),
    ):
        if not counted:
            continue
        row[column] = max(0, row[column] - 1)
        if slot < c.slot:
            c.memory[column] = max(0.0, c.memory[column] - 1)
    if slot < c.slot:
        c.bounce_base = max(0.0, c.bounce_base - 1)
    c.tries -= 1
    if ours:
        c.soft -= 1
        c.cusum_soft = 0.0


def count_complaint(c: Counters, at: float) -> None:
    """Count a complaint at the time of the send it is about, or now where that is long past."""
    row = _row(c, max(at, c.slot * SLOT))
    if row is not None:
        row[N.COMPLAINTS] += 1
        c.cusum_complaint = _alarm(c.cusum_complaint, True, COMPLAINT_STEPS)


def count_late_bounce(c: Counters, at: float) -> None:
    """Count a hard bounce reported after the 250 (DSN, webhook)."""
    row = _row(c, max(at, c.slot * SLOT))
    if row is not None:
        row[N.HARD] += 1
        c.cusum_bounce = _alarm(c.cusum_bounce, True, BOUNCE_STEPS)


def advance(c: Counters, now: float) -> None:
    """Let time pass: closed slots enter the memory."""
    new = int(now // SLOT)
    if c.slot == 0:
        c.slot = new
    while c.slot < new:
        steps = 1 if c.slot + SLOTS >= new else new - c.slot - SLOTS
        _remember(c, c.ring[c.slot % SLOTS], steps)
        c.slot += steps
        c.ring[c.slot % SLOTS] = [0] * WIDTH
        if steps > 1:
            c.ring = [[0] * WIDTH for _ in range(SLOTS)]


def recent(c: Counters, now: float, seconds: float) -> list[int]:
    """Sums over the slots that lie within the last ``seconds``, the open one included; whole slots only,
    so that nothing older is among them."""
    newest = int(now // SLOT)
    wanted = min(SLOTS, int(seconds // SLOT))
    out = [0] * WIDTH
    for number in range(newest - wanted + 1, newest + 1):
        if c.slot - SLOTS < number <= c.slot:
            for i, value in enumerate(c.ring[number % SLOTS]):
                out[i] += value
    return out


def faded(c: Counters) -> list[float]:
    """The memory together with the open slot."""
    return [m + r for m, r in zip(c.memory, c.ring[c.slot % SLOTS], strict=True)]


def bounce_tries(c: Counters) -> float:
    """Attempts the bounce rate is taken of, with its half-life."""
    row = c.ring[c.slot % SLOTS]
    return c.bounce_base + row[N.TRIES] + row[N.HARD]


def settle(c: Counters) -> None:
    """After acting on the evidence: it stays as an opinion worth at most :data:`OLD_EVIDENCE` attempts,
    alarms start anew, so that what comes now decides."""
    c.cusum_bounce = c.cusum_soft = c.cusum_complaint = 0.0
    seen = faded(c)
    keep = min(1.0, OLD_EVIDENCE / max(1.0, seen[N.TRIES]))
    c.memory = [value * keep for value in seen]
    c.bounce_base = bounce_tries(c) * keep
    c.ring[c.slot % SLOTS] = [0] * WIDTH


def _alarm(value: float, hit: bool, steps: tuple[float, float]) -> float:
    return min(CUSUM_CAP, cusum(value, hit, steps))


def _row(c: Counters, at: float) -> list[int] | None:
    number = int(at // SLOT)
    if number > c.slot:
        advance(c, at)
    if number <= c.slot - SLOTS:
        number = c.slot  # late news counts now: its slot has closed
    c.last = max(c.last, at)
    return c.ring[number % SLOTS]


def _remember(c: Counters, row: list[int], steps: int) -> None:
    for i in range(WIDTH):
        keep = 0.5 ** (steps * SLOT / _RATES[i])
        c.memory[i] = c.memory[i] * keep + row[i]
    keep = 0.5 ** (steps * SLOT / HALF_LIFE[N.HARD])
    c.bounce_base = c.bounce_base * keep + row[N.TRIES] + row[N.HARD]
