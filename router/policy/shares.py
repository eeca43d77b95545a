"""Exact weighted shares: in every window of 1,000 consecutive draws each arm gets its share, rounded.

Smooth weighted round robin alone drifts up to 1.9 jobs off in a sliding window when weights do not
divide 1,000. So draws follow a pattern of 1,000 places: the first is smooth weighted round robin over
whole quotas; the next repeats it, and only where an arm's remainder has grown to a whole job a place
changes hands. A window then holds floor or ceil of the exact share, and nothing is lost in the long run.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from router.policy.hashing import digest

WINDOW = 1000
MAX_ARMS = 256
_WORD = (1 << 64) - 1
_STEP = 0x6A09E667F3BCC909  # 2**64 times the fraction of the square root of 2


class Turn(msgspec.Struct, frozen=True):
    """Where a weighted choice stands."""

    pattern: bytes  # WINDOW places, each the index of an arm
    place: int  # the next draw's
    owed: tuple[int, ...]  # remainders not yet given, in 1/sum(weights) of a job


def begin(weights: Sequence[int]) -> Turn:
    """The first turn. Weights are whole, not negative, not all zero; at most 256 arms."""
    if not 0 < len(weights) <= MAX_ARMS or min(weights) < 0 or sum(weights) == 0:
        raise ValueError("shares need 1 to 256 weights that are not negative and not all 0")
    quotas, owed = _quotas(weights, (0,) * len(weights))
    return Turn(_smooth(quotas), 0, owed)


def draw(turn: Turn, weights: Sequence[int]) -> tuple[int, Turn]:
    """The arm whose turn it is, and the turn after it."""
    if turn.place == WINDOW:
        quotas, owed = _quotas(weights, turn.owed)
        turn = Turn(_shifted(turn.pattern, quotas), 0, owed)
    return turn.pattern[turn.place], Turn(turn.pattern, turn.place + 1, turn.owed)


def _quotas(weights: Sequence[int], owed: tuple[int, ...]) -> tuple[list[int], tuple[int, ...]]:
    """Whole jobs of each arm in the next window, and what stays owed."""
    total = sum(weights)
    quotas = [WINDOW * weight // total for weight in weights]
    due = [o + WINDOW * w % total for o, w in zip(owed, weights, strict=True)]
    spare = WINDOW - sum(quotas)
    fractional = [i for i, w in enumerate(weights) if WINDOW * w % total]
    for i in sorted(fractional, key=lambda i: (-due[i], i))[:spare]:
        quotas[i] += 1
        due[i] -= total
    return quotas, tuple(due)


def _smooth(quotas: Sequence[int]) -> bytes:
    """Smooth weighted round robin (as in nginx) over quotas that sum to WINDOW."""
    credit = [0] * len(quotas)
    out = bytearray()
    for _ in range(WINDOW):
        for i, quota in enumerate(quotas):
            credit[i] += quota
        best = max(range(len(credit)), key=credit.__getitem__)
        credit[best] -= WINDOW
        out.append(best)
    return bytes(out)


def _shifted(pattern: bytes, quotas: Sequence[int]) -> bytes:
    """The pattern with the fewest places changed so that it holds the quotas."""
    change = [quota - pattern.count(i) for i, quota in enumerate(quotas)]
    if not any(change):
        return pattern
    takers = [i for i, n in enumerate(change) for _ in range(max(n, 0))]
    out = bytearray(pattern)
    for place in range(WINDOW):
        giver = out[place]
        if change[giver] < 0:
            change[giver] += 1
            out[place] = takers.pop()
            if not takers:
                break
    return bytes(out)


def arm_of(job_id: int, split: str, weights: Sequence[int]) -> int:
    """The arm of an A/B split a job belongs to: always the same one for the same weights, so that a retry
    is made by the arm that made the first attempt, whichever router decides it. The first if all are 0.

    The job's place on a circle is its id times an irrational step (Weyl): ids that follow one another, as
    a campaign's do, spread evenly, and shares of any run of them hold within a few jobs. A step of its own
    keeps it apart from the choice of a canary's jobs.
    """
    total = sum(weights)
    place = (job_id * _STEP + (digest(split) << 34)) & _WORD
    reached = place * total >> 64
    for arm, weight in enumerate(weights):
        reached -= weight
        if reached < 0:
            return arm
    return 0
