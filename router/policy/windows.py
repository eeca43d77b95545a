"""Time windows with zones: whether one is open, and when it opens next."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from mailweir.contracts.policy import Window


@lru_cache(maxsize=256)
def zone(name: str) -> ZoneInfo:
    """The zone of a name of the IANA database. Raises ``ZoneInfoNotFoundError`` or ``ValueError``."""
    return ZoneInfo(name)


def is_open(window: Window, now: float) -> bool:
    """Whether the window is open at ``now`` (Unix seconds). One over midnight belongs to the day
    it began on."""
    local = datetime.fromtimestamp(now, zone(window.zone))
    minute, day = local.hour * 60 + local.minute, local.weekday()
    if window.start < window.end:
        return day in window.days and window.start <= minute < window.end
    return (minute >= window.start and day in window.days) or (
        minute < window.end and (day - 1) % 7 in window.days
    )


def next_opening(window: Window, now: float) -> float:
    """Unix seconds of the next opening after ``now``; of ``now`` itself when it is open."""
    if is_open(window, now):
        return now
    here = zone(window.zone)
    today = datetime.fromtimestamp(now, here).date()
    for offset in range(9):
        day = today + timedelta(days=offset)
        if day.weekday() in window.days:
            opening = _at(day, window.start, here)
            if opening > now:
                return opening
    raise ValueError("a window without a weekday never opens")  # refused by the loader


def _at(day: date, minute: int, here: ZoneInfo) -> float:
    """Unix seconds of a local wall time; in the gap of a clock change, the time after the gap."""
    return datetime(
        day.year, day.month, day.day, minute // 60 % 24, minute % 60, tzinfo=here
    ).timestamp()
