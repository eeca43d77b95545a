"""Opens what a command works on, and says what is wrong when it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from console.output import Exit, fail
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.database import Database, DatabaseUnavailable, open_database
from mailweir.plumbing.settings import Settings, SettingsError, load


def clock_of(settings: Settings) -> Clock:
    """The policy clock all processes share."""
    return Clock(settings.clock.origin, settings.clock.rate)


@contextmanager
def opened() -> Iterator[tuple[Settings, Database]]:
    """Settings of the environment and the spool's database; leaves with an exit code otherwise."""
    try:
        settings = load()
        if settings.database.url is None and not (settings.data / "spool.db").exists():
            fail(
                f"no spool in {settings.data.resolve()}; start one with `mailweir up`, or set "
                "MAILWEIR_DATA to its data directory",
                Exit.NOT_FOUND,
            )
        database = open_database(settings)
        try:
            yield settings, database
        finally:
            database.close()
    except SettingsError as error:
        fail(str(error), Exit.USAGE)
    except DatabaseUnavailable as error:
        fail(f"the spool does not answer: {error}", Exit.TEMPFAIL)
