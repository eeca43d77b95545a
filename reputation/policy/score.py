"""From counts to a score 0..1 with its reasons and confidence (deliverability 4.1, 4.2). Pure.

``score = product(1 - w * loss)``, ``loss = clip((upper bound of the rate - good) / (stop - good))``. Few
observations give a provisional score: the start value and the evidence are mixed by confidence
``n / (n + 100)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from reputation.policy.counters import Counters, N, bounce_tries, faded
from reputation.policy.statistics import upper

PROVISIONAL_N = 100.0
START_WARM = 0.8
START_COLD = 0.5
USUAL = 0.05
"""Share of deferrals at an hour from which a habit is worth naming."""

FAULT = 0.05
"""What each failing check of our own names and certificate costs, three at most: receivers weigh them too."""


class Signal(msgspec.Struct, frozen=True):
    """One component: where the rate is good, where it has cost its whole weight, and its prior."""

    name: str
    weight: float
    good: float
    stop: float
    prior: tuple[float, float]


COMPLAINT = Signal("complaints", 0.5, 0.0005, 0.003, (0.5, 999.5))
BLOCK = Signal("soft bounces", 0.4, 0.005, 0.10, (0.5, 199.5))
BOUNCE = Signal("hard bounces", 0.3, 0.01, 0.05, (1.0, 99.0))
DEFERRAL = Signal("deferrals", 0.2, 0.05, 0.25, (1.0, 19.0))


class Score(msgspec.Struct, frozen=True):
    """A judgement: ``value`` 0..1, ``confidence`` 0..1, what cost something and how much was seen."""

    value: float
    confidence: float
    n: float
    reasons: tuple[str, ...]
    components: dict[str, float]
    evidence: float = 1.0  # what was seen alone, without the start value


def _cost(signal: Signal, k: float, of: float) -> float:
    """What ``k`` of ``of`` costs, 0 to the signal's weight: the rate's upper bound between good and stop."""
    bound = upper(k, of, signal.prior)
    return signal.weight * min(1.0, max(0.0, (bound - signal.good) / (signal.stop - signal.good)))


def score(
    c: Counters,
    *,
    cold: bool,
    usual_deferral: float = 0.0,
    placement: float | None = None,
    faults: Sequence[str] = (),
    place: str = "the provider",
) -> Score:
    """The score of a path.

    ``usual_deferral``: share this provider usually defers at this time of day, which is held against
    nobody (S55), and ``place`` names it in the reasons; ``placement``: share of seed mails found in the
    inbox, or None (S56); ``faults``: checks of the source's own names and certificate that fail (N57).
    """
    m = faded(c)
    n = m[N.TRIES] + m[N.HARD]
    deferral = msgspec.structs.replace(
        DEFERRAL,
        good=max(DEFERRAL.good, usual_deferral * 1.25),
        stop=max(DEFERRAL.stop, usual_deferral * 2.5),
    )
    product = 1.0
    reasons: list[str] = []
    components: dict[str, float] = {}
    for signal, k, of in (
        (COMPLAINT, m[N.COMPLAINTS], m[N.SENT]),
        (BLOCK, m[N.SOFT], m[N.TRIES]),
        (BOUNCE, m[N.HARD], bounce_tries(c)),
        (deferral, m[N.DEFERRED], m[N.TRIES]),
    ):
        factor = 1.0 - _cost(signal, k, of)
        components[signal.name] = round(factor, 4)
        product *= factor
        rate = f"{signal.name} {k / max(of, 1.0):.2%} of {of:.0f}"
        habit = f"usual for {place}: {usual_deferral:.0%}"
        if k > 0 and factor < 0.98:
            usual = f", {habit}" if signal is deferral and usual_deferral > USUAL else ""
            reasons.append(f"{rate} (good below {signal.good:.2%}){usual}")
        elif signal is deferral and usual_deferral > USUAL and _cost(DEFERRAL, k, of) > 0.02:
            reasons.append(f"{rate} not held against it, {habit}")
    if placement is not None:
        factor = 1.0 - 0.3 * min(1.0, max(0.0, (0.8 - placement) / 0.6))
        components["inbox placement"] = round(factor, 4)
        product *= factor
        if factor < 0.98:
            reasons.append(f"inbox placement {placement:.0%} of seed mails")
    if faults:
        factor = 1.0 - FAULT * min(len(faults), 3)
        components["own address"] = round(factor, 4)
        product *= factor
        reasons.append(f"own address: {', '.join(faults)} (see the own-source watch)")
    confidence = n / (n + PROVISIONAL_N)
    start = START_COLD if cold else START_WARM
    value = confidence * product + (1.0 - confidence) * start
    if n < PROVISIONAL_N:
        reasons.append(f"provisional: {n:.0f} attempts seen")
    return Score(value, confidence, n, tuple(reasons), components, product)
