"""Whose fault a symptom is: a source's, or the provider's (S35). Pure.

The same symptom on all our own sources at a provider means that the provider is in trouble: then no score
falls and no path is suspended. Breakers let few attempts through while a provider is down, so a source's
pulse looks at its newest attempts, all buckets together, and a source that sent nothing since the others
fell ill says nothing. One that did send well since then proves that the provider works.
"""

from __future__ import annotations

import msgspec

from reputation.policy.counters import BLAMES_US, EXEMPT, SLOT

MEMORY = (
    16  # attempts a pulse remembers: four failures in a row are a symptom, so is a third of them
)
ILL = 0.22
WELL = 0.10
SAMPLE = 20  # attempts of the last ten minutes from which their share counts as well
LEAST = 3  # failures among them
PATIENCE = (
    60.0  # policy seconds one source's symptom waits for the others to show it or to disprove it
)
SILENCE = 3600.0  # a source without attempts for so long says nothing
REMOTE, SOURCE = "remote", "source"


class Symptom(msgspec.Struct):
    """One kind of failure at one source. ``since``: when it became a symptom, None while well."""

    value: float = 0.0  # of the newest attempts, a share
    now: int = 0  # failures in this slot of five minutes
    before: int = 0  # and in the one before
    since: float | None = None


class Pulse(msgspec.Struct):
    """One source at one provider."""

    slot: int = 0
    now: int = 0
    before: int = 0
    last: float = -1e18
    good: float = -1e18  # newest attempt that went well
    kinds: dict[str, Symptom] = msgspec.field(
        default_factory=lambda: {REMOTE: Symptom(), SOURCE: Symptom()}
    )


class Watch(msgspec.Struct):
    """All own sources at one provider, and the kinds of failure that are the provider's now."""

    pulses: dict[str, Pulse] = msgspec.field(default_factory=dict)
    sick: list[str] = msgspec.field(default_factory=list)


def kind_of(outcome: str, category: str | None, blame: str | None) -> str | None:
    """The kind of symptom of an attempt, ``""`` where the provider did its work, None where it says
    nothing. What blames sender or content is ours on every source, so it is nobody's symptom."""
    if outcome == "sent":
        return ""
    if outcome not in ("deferred", "bounced") or category in EXEMPT:
        return None
    if blame == "recipient":
        return ""
    if blame == SOURCE:
        return SOURCE
    return None if blame in BLAMES_US else REMOTE


def note(w: Watch, source: str, at: float, kind: str, share: float) -> None:
    """Count an attempt; ``share``: of failures, from which a source would leave rotation."""
    p = w.pulses.get(source)
    if p is None:
        p = w.pulses[source] = Pulse()
    _turn(p, at)
    p.now += 1
    p.last = max(p.last, at)
    if not kind:
        p.good = max(p.good, at)
    for name, s in p.kinds.items():
        hit = name == kind
        s.value += (hit - s.value) / MEMORY
        s.now += hit
        many = p.now + p.before >= SAMPLE and s.now + s.before >= LEAST
        many = many and s.now + s.before > share * (p.now + p.before)
        if s.since is None and hit and (s.value >= ILL or many):
            s.since = at
        elif s.since is not None and s.value < WELL and not many:
            s.since = None


def decide(w: Watch, now: float, sources: int, *, alone: bool) -> list[str]:
    """The kinds of failure that are the provider's, now; ``sources`` of ours may send there. With
    ``alone``, one source's remote failures that nobody disproved for :data:`PATIENCE` are, too."""
    return [kind for kind in (REMOTE, SOURCE) if _shared(w, kind, now, sources, alone)]


def undecided(w: Watch, source: str, now: float) -> bool:
    """Whether the source has a symptom so new that the others could not show or disprove it yet."""
    p = w.pulses.get(source)
    if p is None:
        return False
    for s in p.kinds.values():
        if s.since is not None and now - s.since < PATIENCE and not _disproved(w, source, s.since):
            return True
    return False


def _shared(w: Watch, kind: str, now: float, sources: int, alone: bool) -> bool:
    ill = {
        name: since
        for name, p in w.pulses.items()
        if (since := p.kinds[kind].since) is not None and now - p.last < SILENCE
    }
    if not ill:
        return False
    onset = max(ill.values())
    if any(p.good > onset for name, p in w.pulses.items() if name not in ill):
        return False
    if len(ill) >= 2:
        return True
    return alone and kind == REMOTE and (sources == 1 or now - onset >= PATIENCE)


def _disproved(w: Watch, source: str, since: float) -> bool:
    return any(p.good > since for name, p in w.pulses.items() if name != source)


def _turn(p: Pulse, at: float) -> None:
    slot = int(at // SLOT)
    if slot <= p.slot:
        return
    silent = at - p.last >= SILENCE
    for s in p.kinds.values():
        s.before, s.now = (s.now if slot == p.slot + 1 else 0), 0
        if silent:
            s.value, s.since = 0.0, None
    p.before, p.now = (p.now if slot == p.slot + 1 else 0), 0
    p.slot = slot
