"""The list over SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mailweir.plumbing.database import Database, migrate
from tests.contract.suppression import rows


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A migrated database of its own."""
    if request.param == "sqlite":
        yield from rows.sqlite(tmp_path)
        return
    database = Database(request.getfixturevalue("postgres_new")())
    migrate(database)
    yield database
    database.close()
