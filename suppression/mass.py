"""The mass-bounce guard: a provider whose directory fails must not empty our lists. Pure.

Provider directory outages have answered "no such user" for whole domains (Gmail, December 2020). If more
than 30 % of at least 50 attempts of the last 5 minutes met an unknown recipient at a provider where
that share was below 5 % before, its hard bounces are kept ``pending``: they suppress nobody until an
operator decides or 24 h confirm them.
"""

from __future__ import annotations

import msgspec

WINDOW = 300.0  # policy seconds
SLOTS = 10  # the window in slots
SHARE = 0.30
SAMPLE = 50
BASELINE = 0.05
BASELINE_SAMPLE = 200.0  # attempts that must have been seen before, decayed
HALF_LIFE = 3 * 86400.0  # of the baseline
QUIET = 1800.0  # seconds without the symptom until the guard lets go
CONFIRM_AFTER = 86400.0


class ProviderGuard(msgspec.Struct):
    """What is known of one provider: recent slots, the baseline before them, until when it holds."""

    slot: int = 0
    tries: list[int] = msgspec.field(default_factory=lambda: [0] * SLOTS)
    misses: list[int] = msgspec.field(default_factory=lambda: [0] * SLOTS)
    base_tries: float = 0.0
    base_misses: float = 0.0
    until: float = 0.0

    def note(self, at: float, missed: bool) -> None:
        """Count one attempt; slots that leave the window become the baseline."""
        self._advance(at)
        self.tries[self.slot % SLOTS] += 1
        self.misses[self.slot % SLOTS] += missed
        if self._symptom():
            self.until = at + QUIET

    def holds(self, now: float) -> bool:
        """Whether hard bounces of this provider are to be kept pending now."""
        return now < self.until

    def _advance(self, at: float) -> None:
        new = int(at / (WINDOW / SLOTS))
        if self.slot == 0:
            self.slot = new
        for _ in range(min(max(0, new - self.slot), SLOTS)):
            self.slot += 1
            place = self.slot % SLOTS
            if self.until <= at:  # an outage must not become the baseline
                keep = 0.5 ** (WINDOW / SLOTS / HALF_LIFE)
                self.base_tries = self.base_tries * keep + self.tries[place]
                self.base_misses = self.base_misses * keep + self.misses[place]
            self.tries[place] = self.misses[place] = 0
        self.slot = max(self.slot, new)

    def _symptom(self) -> bool:
        tries, misses = sum(self.tries), sum(self.misses)
        if tries < SAMPLE or misses <= SHARE * tries or self.base_tries < BASELINE_SAMPLE:
            return False
        return self.base_misses < BASELINE * self.base_tries
