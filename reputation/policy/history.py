"""What a provider usually does at an hour of the day (S55): defers more at its busy hours, say. Pure."""

from __future__ import annotations

import msgspec

DAY_SECONDS = 86400.0
HALF_LIFE_DAYS = 7.0
ENOUGH = 200.0  # attempts an hour must have seen before it counts as usual


def hour(at: float) -> int:
    """Hour of the day, UTC."""
    return int(at % DAY_SECONDS // 3600)


class Habits(msgspec.Struct):
    """Attempts and deferrals of one provider by hour of the day (UTC), fading over weeks."""

    tries: list[float] = msgspec.field(default_factory=lambda: [0.0] * 24)
    deferred: list[float] = msgspec.field(default_factory=lambda: [0.0] * 24)
    seconds: list[float] = msgspec.field(default_factory=lambda: [0.0] * 24)
    day: int = 0
    today_tries: list[int] = msgspec.field(default_factory=lambda: [0] * 24)
    today_deferred: list[int] = msgspec.field(default_factory=lambda: [0] * 24)

    def note(self, at: float, deferred: bool, seconds: float) -> None:
        """Count one attempt; today becomes usual only tomorrow, so that no rise excuses itself."""
        day = int(at // DAY_SECONDS)
        if day > self.day:
            self._close(day)
        now = hour(at)
        self.today_tries[now] += 1
        self.today_deferred[now] += deferred
        self.seconds[now] += 0.05 * (seconds - self.seconds[now])

    def usual(self, at: float) -> float:
        """Share of attempts this provider usually defers at this hour; 0 while too little is known."""
        now = hour(at)
        if self.tries[now] < ENOUGH:
            return 0.0
        return self.deferred[now] / self.tries[now]

    def _close(self, day: int) -> None:
        keep = 0.5 ** (min(day - self.day, 90) / HALF_LIFE_DAYS)
        for of_day in range(24):
            self.tries[of_day] = self.tries[of_day] * keep + self.today_tries[of_day]
            self.deferred[of_day] = self.deferred[of_day] * keep + self.today_deferred[of_day]
        self.today_tries, self.today_deferred = [0] * 24, [0] * 24
        self.day = day
